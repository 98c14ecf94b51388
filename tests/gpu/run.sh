#!/usr/bin/env bash
# On a machine with a GPU, about 20 minutes: the tests that need one, then figures of the suite `quick` trained and measured
# on it. Usage: tests/gpu/run.sh FILE; FILE (results/gpu/NAME.json) takes the figures.
set -euo pipefail
cd "$(dirname "$0")/../.."
file=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
device=${SHAREBENCH_TEST_DEVICE:-cuda}
python -m pytest tests/gpu tests/unit/speed/test_speed.py -m gpu -q --junitxml "$folder/tests.xml" || true
started=$(date +%s)
python -m benchmark.run quick --device "$device" --jobs 2 --no-speed --out "$folder/quick"
seconds=$(($(date +%s) - started))
batches=1,8,32,128
dtypes=fp32,bf16
if [ "$device" = cpu ]; then batches=1; dtypes=fp32; fi
python -m benchmark.throughput "$folder/quick" --device "$device" --batch "$batches" --dtype "$dtypes" --mode joint \
  --memory-format contiguous,channels_last --execution eager,compiled,folded --csv "$folder/speed.csv"
python -m tests.gpu.figures "$folder" "$seconds" "$file"
