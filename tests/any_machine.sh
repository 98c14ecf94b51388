#!/usr/bin/env bash
# The numerical part of the tests (marker `numerical`) on the kernels of other machines.
#
#   tests/any_machine.sh [--two] [pytest arguments, such as -k]
#
# Kernels add in an order that follows from instruction set, library and number of threads, so a test that asks for more
# than the arithmetic gives passes on some machines by luck. One setting at a time is changed against the machine's own;
# the last two cross them, to the least and to the most that the machine has, and are what --two runs. Prints a table;
# exit code 1 where anything failed.
set -uo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=PASSIVE  # more threads than cores must not spin while they wait for each other
unset ATEN_CPU_CAPABILITY ONEDNN_MAX_CPU_ISA MKL_CBWR OMP_NUM_THREADS MKL_NUM_THREADS

own=$(python -c 'import torch; print(torch.backends.cpu.get_cpu_capability())') || exit 1
case "$own" in
  AVX512) aten=(default avx2 avx512) onednn=(SSE41 AVX2 AVX512_CORE) ;;
  AVX2) aten=(default avx2) onednn=(SSE41 AVX2) ;;
  *) aten=(default) onednn=(SSE41) ;;
esac
least="ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=AVX2"
most="ATEN_CPU_CAPABILITY=${aten[-1]} ONEDNN_MAX_CPU_ISA=${onednn[-1]} OMP_NUM_THREADS=2"
if [ "${1:-}" = "--two" ]; then
  shift
  settings=("$least" "$most")
else
  settings=(OMP_NUM_THREADS={1,2,4} "${aten[@]/#/ATEN_CPU_CAPABILITY=}" "${onednn[@]/#/ONEDNN_MAX_CPU_ISA=}"
    MKL_CBWR=AVX2 "$least" "$most")
fi

readarray -t files < <(grep -rlE 'mark\.numerical|"float64"' tests --include='test_*.py' | sort)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
count() { tail -n 1 "$log" | grep -oE "[0-9]+ $1" | cut -d ' ' -f 1 | grep . || echo 0; }

row='%-92s %6s %6s %7s\n' status=0
# shellcheck disable=SC2059
printf "$row" "setting (this machine: $own)" passed failed seconds
for setting in "${settings[@]}"; do
  started=$SECONDS
  # shellcheck disable=SC2086
  if ! env OMP_NUM_THREADS=1 $setting python -m pytest -q -n 2 -p no:cacheprovider -m "numerical and not slow" \
    "${files[@]}" "$@" >"$log" 2>&1; then
    status=1
    cat "$log" >&2
  fi
  # shellcheck disable=SC2059
  printf "$row" "$setting" "$(count passed)" "$(($(count failed) + $(count error)))" "$((SECONDS - started))"
done
exit "$status"
