#!/usr/bin/env bash
# Chromium for the report's tests: the one that is there, else the system's package, else playwright's own build.
# Without one those tests skip and name this command; in CI (CI is set) they fail, and so does this script.
set -uo pipefail
cd "$(dirname "$0")/.."

for name in chromium chromium-browser google-chrome; do
  command -v "$name" >/dev/null && exit 0
done
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  echo "install_browser.sh: installing the system's package chromium with apt-get, for the report's tests" >&2
  apt-get -qq update >/dev/null &&
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends chromium >/dev/null && exit 0
fi
# needs the virtual environment and a download from playwright's own server
if [ -x .venv/bin/playwright ]; then
  echo "install_browser.sh: installing playwright's Chromium into your cache, for the report's tests" >&2
  timeout 120 .venv/bin/playwright install chromium >/dev/null 2>&1 && exit 0
fi
verb=skip
[ -z "${CI:-}" ] || verb=fail
echo "install_browser.sh: no Chromium could be installed here, so the browser tests $verb; install it" \
  "with your system's package manager (apt-get install chromium) or with .venv/bin/playwright install chromium" >&2
[ -z "${CI:-}" ]
