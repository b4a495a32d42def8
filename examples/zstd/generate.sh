#!/bin/sh
# Lays the sources of zstd and a build graph for them into a directory: generate.sh DIR
set -eu

. "$(dirname "$0")/../directories.sh"
crate=$("$here/../crate_dir.sh" zstd-sys)

rm -rf "$out/zstd" "$out/host"
cp -R "$crate/zstd" "$out/zstd"
mkdir "$out/host"
cp "$here/roundtrip.c" "$out/host/"
# Without the formats of before 0.8; the assembler file is empty where the processor is another.
sources=$(cd "$out" && ls zstd/lib/common/*.c zstd/lib/compress/*.c zstd/lib/decompress/*.c \
  zstd/lib/decompress/*.S zstd/lib/dictBuilder/*.c)

compile() { # NAME INPUTS SOURCE OBJECT
  printf '    { "name": "%s", "inputs": [%s],\n' "$1" "$2"
  printf '      "cmds": [ { "exec": ["cc", "-O1", "-I", "zstd/lib", "-c", "%s", ' "$3"
  printf '"-o", "{{OUTPUT_DIR}}/%s"] } ] },\n' "$4"
}

{
  printf '{\n  "version": 1,\n  "jobs": [\n'
  deps=
  objects=
  for source in $sources; do
    file=$(basename "$source")
    compile "cc $file" '"zstd"' "$source" "${file%.*}.o"
    deps="$deps, \"cc $file\""
    objects="$objects, \"{{DEP:cc $file}}/${file%.*}.o\""
  done
  printf '    { "name": "ar libzstd.a", "deps": [%s],\n' "${deps#, }"
  printf '      "cmds": [ { "exec": ["ar", "rcD", "{{OUTPUT_DIR}}/libzstd.a"%s] } ] },\n' "$objects"
  compile "cc roundtrip.c" '"zstd/lib/*.h", "host/roundtrip.c"' host/roundtrip.c roundtrip.o
  printf '    { "name": "link roundtrip", "deps": ["cc roundtrip.c", "ar libzstd.a"],\n'
  printf '      "cmds": [ { "exec": ["cc", "-o", "{{OUTPUT_DIR}}/roundtrip", '
  printf '"{{DEP:cc roundtrip.c}}/roundtrip.o", "{{DEP:ar libzstd.a}}/libzstd.a"] } ] },\n'
  printf '    { "name": "run roundtrip", "inputs": ["zstd/lib/**/*.h"], "deps": ["link roundtrip"],\n'
  printf '      "cmds": [ { "exec": ["{{DEP:link roundtrip}}/roundtrip"'
  (cd "$out" && ls zstd/lib/*.h zstd/lib/compress/*.h) | while read -r header; do
    printf ', "%s"' "$header"
  done
  printf '] } ] }\n  ]\n}\n'
} > "$out/graph.json"
echo "$out/graph.json"
