#!/bin/sh
# Serves the pushed model with TF Serving in Docker: gRPC on 8500, REST on 8501.
# Usage: deploy/serve.sh runs/quickstart/serving/quickstart
# SERVING_TAG chooses the image. TF Serving polls the folder and loads each version that a later run pushes; an unblessed model never gets there.
set -eu
directory=${1:?usage: deploy/serve.sh RUN/serving/MODEL}
[ -d "$directory" ] || { echo "serve: no folder $directory; run the pipeline first" >&2; exit 1; }
name=$(basename "$directory")
directory=$(CDPATH= cd -- "$directory" && pwd)
exec docker run --rm -p 8500:8500 -p 8501:8501 \
  -v "$directory:/models/$name:ro" -e MODEL_NAME="$name" "tensorflow/serving:${SERVING_TAG:-latest}"
