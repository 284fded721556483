# Prints the environment of the servers of a profile ($1), to be sourced.
case $1 in
gpu)
  cat <<'SETTINGS'
export FI_PROVIDER=efa FI_EFA_FORK_SAFE=1 FI_EFA_USE_DEVICE_RDMA=1 FI_LOG_LEVEL=warn
export NCCL_IB_DISABLE=0 NCCL_DEBUG=WARN NIXL_LOG_LEVEL=INFO
export PATH="$PATH:/opt/amazon/efa/bin" LD_LIBRARY_PATH="/opt/amazon/efa/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
SETTINGS
  ;;
cpu)
  cat <<SETTINGS
export PYTHONPATH=$PWD/shim OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind
export VLLM_ENABLE_V1_MULTIPROCESSING=0 UCX_TLS=tcp,self NIXL_LOG_LEVEL=INFO
export HF_HUB_OFFLINE=1
SETTINGS
  ;;
neuron)
  cat <<'SETTINGS'
export FI_PROVIDER=efa FI_LOG_LEVEL=warn
export PATH="$PATH:/opt/aws/neuron/bin:/opt/amazon/efa/bin"
SETTINGS
  ;;
esac
echo "export VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1"
