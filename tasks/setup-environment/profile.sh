# Prints the profile of this machine, gpu or cpu; PROFILE forces it.
if [ "${PROFILE:-auto}" != auto ]; then
  echo "$PROFILE"
elif nvidia-smi -L 2>/dev/null | grep -q GPU; then
  echo gpu
else
  echo cpu
fi
