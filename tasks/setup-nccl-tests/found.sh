# Finds what nccl-tests are built with, and prints it: a build of other parts is another build.
# Reads CUDA_HOME, NCCL_HOME, MPI_HOME, GENCODE, NCCL_TESTS_VERSION; sets those that are empty.
CUDA_HOME=${CUDA_HOME:-/usr/local/cuda}
PATH=$CUDA_HOME/bin:$PATH
if [ -z "${NCCL_HOME:-}" ]; then
  for NCCL_HOME in /usr /usr/local "$CUDA_HOME" /opt/nccl/build ""; do
    [ ! -e "$NCCL_HOME/include/nccl.h" ] || break
  done
fi
if [ -z "${MPI_HOME:-}" ]; then
  for MPI_HOME in /opt/amazon/openmpi /opt/amazon/openmpi5 "/usr/lib/$(uname -m)-linux-gnu/openmpi" ""; do
    [ ! -e "$MPI_HOME/include/mpi.h" ] || break
  done
fi
if [ -z "${GENCODE:-}" ]; then
  for capability in $(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | grep -E '^[0-9]+\.[0-9]+$' | sort -u); do
    GENCODE="${GENCODE:+$GENCODE }-gencode=arch=compute_${capability/./},code=sm_${capability/./}"
  done
fi
version_of() { sed -n 's/^#define NCCL_\(MAJOR\|MINOR\|PATCH\) *\([0-9]*\).*/\2/p' "$1" 2>/dev/null | paste -sd. -; }
echo "nccl-tests ${NCCL_TESTS_VERSION:-}"
echo "nvcc $(nvcc --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\).*/\1/p')"
echo "NCCL $(version_of "${NCCL_HOME:-/none}/include/nccl.h") in ${NCCL_HOME:-nowhere}"
echo "MPI ${MPI_HOME:-none}"
echo "GPUs ${GENCODE:-none}"
