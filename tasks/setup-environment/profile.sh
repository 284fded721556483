# Prints the profile of this machine, gpu, neuron or cpu; PROFILE forces it.
if [ "${PROFILE:-auto}" != auto ]; then
  echo "$PROFILE"
elif nvidia-smi -L 2>/dev/null | grep -q GPU; then
  echo gpu
elif [ -e /dev/neuron0 ]; then
  echo neuron
else
  echo cpu
fi
