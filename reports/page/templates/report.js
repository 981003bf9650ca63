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

  // samples: filter, order, pages, deep links; those past the first are packed until they are looked at
  function inflate(block) {
    var bytes = Uint8Array.from(atob(block.textContent), function (letter) { return letter.charCodeAt(0); });
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).json();
  }
  all(".samples").forEach(function (list) {
    var place = list.parentNode, bar = place.querySelector(".sample-bar"), size = 25, page = 0, turn = 0;
    if (!bar) return;
    var items = all(":scope > details", list).map(function (node, index) {
      var told = node.dataset;
      return { node: node, id: node.id, index: index, sample: told.sample, flags: told.flags.split(" "),
               tokens: +told.tokens, acceptance: told.acceptance === "" ? Infinity : +told.acceptance, search: told.search };
    });
    var filter = "all", words = [], info = bar.querySelector(".sample-count"), order = bar.querySelector("select");
    var packs = all("script.pack", place), opened = {}, index = place.querySelector("script.pack-index");
    function matches(item) {
      return (filter === "all" || item.flags.indexOf(filter) >= 0) &&
        words.every(function (word) { return item.search.indexOf(word) >= 0; });
    }
    function unpack(item) {
      var number = item.pack;
      opened[number] = opened[number] || inflate(packs[number]);
      return opened[number].then(function (markups) {
        // our own markup, escaped like all of the page
        item.node = item.node || new DOMParser().parseFromString(markups[item.at], "text/html").body.firstElementChild;
      });
    }
    function show(then) {
      var found = items.filter(matches), pages = Math.max(1, Math.ceil(found.length / size)), mine = ++turn;
      page = Math.min(Math.max(page, 0), pages - 1);
      var here = found.slice(page * size, (page + 1) * size);
      var folded = here.filter(function (item) { return !item.node; });
      function lay() {
        if (mine !== turn) return;
        var nodes = here.map(function (item) { return item.node; });
        // what is there stays as it is, focus and all
        if (nodes.length !== list.children.length || nodes.some(function (node, at) { return node !== list.children[at]; }))
          list.replaceChildren.apply(list, nodes);
        nodes.forEach(function (node) { all(".out", node).forEach(function (out) { out.tabIndex = 0; }); });
        info.textContent = found.length + " of " + items.length + " samples, page " + (page + 1) + " of " + pages;
        if (then) then();
      }
      if (!folded.length) return lay();
      info.textContent = "Unpacking …";
      Promise.all(folded.map(unpack)).then(lay, function () { info.textContent = "This browser can’t unpack these samples."; });
    }
    function again() { page = 0; show(); }
    function arrange() {
      var key = order.value;
      items.sort(function (a, b) {
        return (key === "tokens" ? b.tokens - a.tokens : key === "acceptance" && a.acceptance !== b.acceptance ?
          (a.acceptance < b.acceptance ? -1 : 1) : 0) || a.index - b.index;
      });
    }
    on(order, "change", function () { arrange(); again(); });
    function choose(flag) {
      filter = flag;
      all("button[data-flag]", bar).forEach(function (button) {
        button.setAttribute("aria-pressed", button.dataset.flag === flag);
      });
    }
    all("button[data-flag]", bar).forEach(function (button) {
      on(button, "click", function () { choose(button.dataset.flag); again(); });
    });
    on(bar.querySelector("input"), "input", function () {
      words = this.value.toLowerCase().split(/\s+/).filter(Boolean);
      again();
    });
    all("button[data-page]", bar).forEach(function (button) {
      on(button, "click", function () { page += +button.dataset.page; show(); });
    });
    function route() {
      var hash = location.hash.slice(1);
      try { hash = decodeURIComponent(hash); } catch (error) { return true; }
      var wanted = items.filter(function (item) { return hash === "sample=" + item.sample || hash === item.id; })[0];
      if (!wanted) return false;
      if (!matches(wanted)) {
        choose("all");
        bar.querySelector("input").value = "";
        words = [];
      }
      page = Math.floor(items.filter(matches).indexOf(wanted) / size);
      show(function () {
        wanted.node.open = true;
        wanted.node.scrollIntoView();
        wanted.node.querySelector("summary").focus({ preventScroll: true });
      });
      return true;
    }
    on(window, "hashchange", route);
    show();
    var found = route();
    if (index && window.DecompressionStream) {
      info.textContent += ", more to come";
      // the page is there first
      setTimeout(function () {
        inflate(index).then(function (rows) {
          var at = {};
          rows.forEach(function (row) {
            var pack = row[6];
            at[pack] = at[pack] === undefined ? 0 : at[pack] + 1;
            items.push({ node: null, id: row[0], index: items.length, sample: row[1], flags: row[2].split(" "), tokens: row[3],
                         acceptance: row[4] === null ? Infinity : row[4], search: row[5], pack: pack, at: at[pack] });
          });
          arrange();
          show();
          if (!found) route();
        });
      }, 0);
    }
  });

  // steps of an answer: what hovering tells, for touch and keyboard too
  function tell(out, step) {
    var line = out.nextElementSibling;
    if (!line || !line.classList.contains("told")) {
      line = doc.createElement("p");
      line.className = "told";
      line.setAttribute("role", "status");
      out.after(line);
    }
    all("i.chosen", out).forEach(function (other) { other.classList.remove("chosen"); });
    step.classList.add("chosen");
    line.textContent = step.title;
  }
  on(doc, "click", function (event) {
    var step = event.target.closest(".out i");
    if (step) tell(step.parentNode, step);
  });
  on(doc, "keydown", function (event) {
    var out = event.target, way = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!way || !out.classList.contains("out")) return;
    var steps = all("i", out), at = steps.findIndex(function (step) { return step.classList.contains("chosen"); });
    at = at < 0 ? (way > 0 ? 0 : steps.length - 1) : Math.min(Math.max(at + way, 0), steps.length - 1);
    event.preventDefault();
    if (steps[at]) tell(out, steps[at]);
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
