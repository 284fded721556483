# Prints a Python that can make virtual environments and that vLLM supports (3.11 to 3.13).
for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3 /usr/bin/python3}; do
  if "$candidate" -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
    command -v "$candidate"
    exit 0
  fi
done
echo "no Python 3.11 to 3.13 with ensurepip: install one, or name it with --env PYTHON=..." >&2
exit 1
