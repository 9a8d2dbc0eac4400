# What the machine itself must have: sourced by .ci/setup and .ci/run. Runs in the bash 3.2 of macOS too.

# Prints the Python to use: $PYTHON, or the first of the usual names that is new enough. Fails if there is none.
# Each is run, not only looked up: a pyenv shim exists for versions that are not active.
pick_python() {
  local candidate
  # Above 3.14 the pinned libraries have no wheels yet, and we never compile.
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.14}; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' >/dev/null 2>&1; then
      command -v "$candidate"
      return 0
    fi
  done
  return 1
}

# Prints the packages of packages.txt that this machine lacks, one a line (without a Python, all that only it could tell).
missing_packages() {
  local python package probe why
  python=$(pick_python) || python=""
  while read -r package probe why; do
    case "$package" in "" | "#"*) continue ;; esac
    case "$probe" in
      command:*) command -v "${probe#*:}" >/dev/null 2>&1 ;;
      python:*) [ -n "$python" ] ;;
      module:*) [ -n "$python" ] && "$python" -c "import ${probe#*:}" >/dev/null 2>&1 ;;
      # Elsewhere than on Linux the wheels bring these themselves.
      library:*) [ "$(uname -s)" != Linux ] ||
        { [ -n "$python" ] && "$python" -c "import ctypes; ctypes.CDLL('${probe#*:}')" >/dev/null 2>&1; } ;;
      *) echo "packages.txt: unknown probe $probe" >&2 && return 2 ;;
    esac || case "$package $python" in
      "python3-venv "*/python3.*) echo "${python##*/}-venv" ;; # Debian packages venv per version
      *) echo "$package" ;;
    esac
  done <packages.txt
}
