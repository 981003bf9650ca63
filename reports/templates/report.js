(function () {
  "use strict";
  var doc = document, root = doc.documentElement;
  root.classList.add("js");
  function all(selector, within) { return Array.prototype.slice.call((within || doc).querySelectorAll(selector)); }
  function on(target, kind, run) { if (target) target.addEventListener(kind, run); }

  // light, dark or as the system says
  var themes = ["auto", "light", "dark"];
  on(doc.getElementById("theme"), "click", function () {
    var next = themes[(themes.indexOf(root.dataset.theme || "auto") + 1) % 3];
    root.dataset.theme = next;
    this.textContent = "Theme: " + next;
  });

  // tables: sort, filter, copy
  function value(row, column) {
    var cell = row.cells[column], raw = cell.dataset.value;
    if (raw === undefined) return null;
    var number = Number(raw);
    return raw !== "" && !isNaN(number) ? number : raw.toLowerCase();
  }
  function sort(table, column, descending) {
    var body = table.tBodies[0], rows = Array.prototype.slice.call(body.rows);
    rows.forEach(function (row, index) { if (row.dataset.order === undefined) row.dataset.order = index; });
    rows.sort(function (a, b) {
      var x = value(a, column), y = value(b, column), order = a.dataset.order - b.dataset.order;
      if (x === null || y === null) return x === y ? order : x === null ? 1 : -1;
      if (typeof x !== typeof y) { x = String(x); y = String(y); }
      return x === y ? order : (x < y ? -1 : 1) * (descending ? -1 : 1);
    });
    rows.forEach(function (row) { body.appendChild(row); });
  }
  all("table[data-sortable]").forEach(function (table) {
    var heads = all("thead th", table);
    heads.forEach(function (head, column) {
      var button = doc.createElement("button");
      button.type = "button";
      while (head.firstChild) button.appendChild(head.firstChild);
      head.appendChild(button);
      on(button, "click", function () {
        var descending = head.getAttribute("aria-sort") === "ascending";
        heads.forEach(function (other) { other.removeAttribute("aria-sort"); });
        head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        sort(table, column, descending);
      });
    });
  });
  all("input[data-filter]").forEach(function (input) {
    var table = doc.getElementById(input.dataset.filter), count = doc.getElementById(input.dataset.filter + "-count");
    function apply() {
      var words = input.value.toLowerCase().split(/\s+/).filter(Boolean), shown = 0;
      all("tbody tr", table).forEach(function (row) {
        var text = row.textContent.toLowerCase();
        row.hidden = !words.every(function (word) { return text.indexOf(word) >= 0; });
        if (!row.hidden) shown += 1;
      });
      count.textContent = shown + " of " + table.tBodies[0].rows.length + " rows";
    }
    on(input, "input", apply);
    apply();
  });
  function quote(text) { return /[",\n]/.test(text) ? '"' + text.replace(/"/g, '""') + '"' : text; }
  all("button[data-csv]").forEach(function (button) {
    on(button, "click", function () {
      var table = doc.getElementById(button.dataset.csv), lines = [];
      all("tr", table).forEach(function (row) {
        lines.push(Array.prototype.map.call(row.cells, function (cell) {
          return quote(cell.dataset.value !== undefined ? cell.dataset.value : cell.dataset.title || cell.textContent.trim());
        }).join(","));
      });
      copy(lines.join("\n") + "\n", button);
    });
  });
  function copy(text, button) {
    var before = button.textContent;
    function done(word) {
      button.textContent = word;
      setTimeout(function () { button.textContent = before; }, 1500);
    }
    function old() {
      var area = doc.createElement("textarea");
      area.value = text;
      doc.body.appendChild(area);
      area.select();
      done(doc.execCommand("copy") ? "Copied" : "Copying is blocked");
      area.remove();
    }
    if (navigator.clipboard && window.isSecureContext) navigator.clipboard.writeText(text).then(function () { done("Copied"); }, old);
    else old();
  }

  // figures: switch a series off
  all(".chips button[data-toggle]").forEach(function (button) {
    on(button, "click", function () {
      var shown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", shown);
      all('[data-series="' + button.dataset.toggle + '"]', button.closest("figure")).forEach(function (part) {
        part.classList.toggle("off", !shown);
      });
    });
  });

  // samples: filter, order, pages, deep links
  all(".samples").forEach(function (list) {
    var bar = list.parentNode.querySelector(".sample-bar"), size = 25, page = 0;
    var items = all(":scope > details", list), filter = "all", words = "";
    if (!bar) return;
    var info = bar.querySelector(".sample-count"), order = bar.querySelector("select");
    function matches(item) {
      var flags = item.dataset.flags.split(" ");
      return (filter === "all" || flags.indexOf(filter) >= 0) && item.dataset.search.indexOf(words) >= 0;
    }
    function show() {
      var found = items.filter(matches), pages = Math.max(1, Math.ceil(found.length / size));
      page = Math.min(Math.max(page, 0), pages - 1);
      items.forEach(function (item) { item.hidden = true; });
      found.slice(page * size, (page + 1) * size).forEach(function (item) { item.hidden = false; });
      info.textContent = found.length + " of " + items.length + " samples, page " + (page + 1) + " of " + pages;
    }
    on(order, "change", function () {
      var key = order.value;
      items.sort(function (a, b) {
        var x = a.dataset[key], y = b.dataset[key];
        if (key === "index" || key === "acceptance") return (x === "" ? Infinity : +x) - (y === "" ? Infinity : +y);
        return y - x;
      });
      items.forEach(function (item) { list.appendChild(item); });
      page = 0;
      show();
    });
    all("button[data-flag]", bar).forEach(function (button) {
      on(button, "click", function () {
        filter = button.dataset.flag;
        all("button[data-flag]", bar).forEach(function (other) { other.setAttribute("aria-pressed", other === button); });
        page = 0;
        show();
      });
    });
    on(bar.querySelector("input"), "input", function () { words = this.value.toLowerCase(); page = 0; show(); });
    all("button[data-page]", bar).forEach(function (button) {
      on(button, "click", function () { page += +button.dataset.page; show(); });
    });
    function route() {
      var hash = location.hash.slice(1), wanted = null;
      try { hash = decodeURIComponent(hash); } catch (error) { return; }
      items.forEach(function (item) {
        if (hash === "sample=" + item.dataset.sample || hash === item.id) wanted = item;
      });
      if (!wanted) return;
      if (!matches(wanted)) {
        filter = "all";
        words = bar.querySelector("input").value = "";
        all("button[data-flag]", bar).forEach(function (b) { b.setAttribute("aria-pressed", b.dataset.flag === "all"); });
      }
      page = Math.floor(items.filter(matches).indexOf(wanted) / size);
      show();
      wanted.open = true;
      wanted.scrollIntoView();
      wanted.querySelector("summary").focus({ preventScroll: true });
    }
    on(window, "hashchange", route);
    show();
    route();
  });

  // where we are
  var links = {};
  all("nav a").forEach(function (link) { links[link.hash.slice(1)] = link; });
  if ("IntersectionObserver" in window) {
    var watcher = new IntersectionObserver(function (entries) {
      entries.forEach(function (entry) {
        if (!entry.isIntersecting || !links[entry.target.id]) return;
        Object.keys(links).forEach(function (id) { links[id].removeAttribute("aria-current"); });
        links[entry.target.id].setAttribute("aria-current", "true");
      });
    }, { rootMargin: "-20% 0px -75% 0px" });
    all("main section[id]").forEach(function (section) { watcher.observe(section); });
  }

  // paper has no triangles to click
  var opened = [];
  on(window, "beforeprint", function () {
    opened = all("details:not([open])").filter(function (part) { return !part.closest(".samples"); });
    opened.forEach(function (part) { part.open = true; });
  });
  on(window, "afterprint", function () { opened.forEach(function (part) { part.open = false; }); });
})();
