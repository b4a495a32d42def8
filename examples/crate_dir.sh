#!/bin/sh
# Prints where cargo keeps the sources of a crate that the workspace locks: crate_dir.sh NAME
set -eu

if [ $# -ne 1 ]; then
  echo "usage: $0 NAME" >&2
  exit 2
fi
workspace=$(dirname "$0")/..
manifest=$(cargo metadata --format-version 1 --locked --manifest-path "$workspace/Cargo.toml" |
  tr ',' '\n' | sed -n "s|.*\"manifest_path\":\"\([^\"]*/$1-[0-9][^\"/]*/Cargo.toml\)\".*|\1|p" | head -n 1)
if [ -z "$manifest" ]; then
  echo "$0: cargo metadata does not name the crate $1" >&2
  exit 1
fi
dirname "$manifest"
