# Finds what fabtests, ucx or nixlbench (the argument) is built with, and prints it: a build with other parts is another
# build. Reads LIBFABRIC_HOME, LIBFABRIC_VERSION, CUDA_HOME, UCX_VERSION, NIXL_VERSION, ENV_DIR; sets those that are
# empty, CUDA, and NIXL_LIBS: the libraries of the wheel that vLLM uses.
if [ -z "${LIBFABRIC_HOME:-}" ]; then
  for LIBFABRIC_HOME in /opt/amazon/efa /usr/local /usr ""; do
    [ ! -e "$LIBFABRIC_HOME/include/rdma/fabric.h" ] || break
  done
fi
PATH=${LIBFABRIC_HOME:-/none}/bin:$PATH:/opt/amazon/efa/bin
if [ -z "${LIBFABRIC_VERSION:-}" ]; then
  # 2.7.0amzn2.0 is 2.7.0 with changes of Amazon's, and is tested by the fabtests of 2.7.0.
  LIBFABRIC_VERSION=$(fi_info --version 2>/dev/null | sed -n 's/^libfabric: \([0-9.]*[0-9]\).*/\1/p')
fi
CUDA=
[ ! -e "${CUDA_HOME:-/none}/include/cuda.h" ] || CUDA=$CUDA_HOME
if [ "$1" = fabtests ]; then
  echo "fabtests ${LIBFABRIC_VERSION:-unknown} for ${LIBFABRIC_HOME:-nothing}"
elif [ "$1" = nixlbench ]; then
  PYTHON=$ENV_DIR/venv/bin/python
  NIXL_LIBS=$("$PYTHON" -c 'import glob, sysconfig
print(*sorted(glob.glob(sysconfig.get_path("platlib") + "/.nixl_cu*.mesonpy.libs"))[-1:])' 2>/dev/null)
  if [ -z "${NIXL_VERSION:-}" ]; then
    NIXL_VERSION=$("$PYTHON" -c 'import importlib.metadata; print(importlib.metadata.version("nixl"))' 2>/dev/null)
  fi
  echo "nixlbench ${NIXL_VERSION:-unknown} for ${NIXL_LIBS:-nothing}"
else
  echo "ucx ${UCX_VERSION:-}"
fi
echo "CUDA ${CUDA:-none}"
