#!/bin/sh
# Lays the sources of snappy and a build graph for them into a directory: generate.sh DIR
set -eu

. "$(dirname "$0")/../directories.sh"
crate=$("$here/../crate_dir.sh" snappy_src)

rm -rf "$out/snappy" "$out/host"
cp -R "$crate/snappy" "$out/snappy"
mkdir "$out/host"
cp "$here/roundtrip.cc" "$out/host/"
version=$(basename "$crate" | sed -n 's/.*+snappy\.\([0-9]*\)\.\([0-9]*\)\.\([0-9]*\)$/\1 \2 \3/p')
# shellcheck disable=SC2086 # Three words.
set -- $version

configure="sed -e 's/\${HAVE_SYS_UIO_H_01}/1/' -e 's/\${PROJECT_VERSION_MAJOR}/$1/'"
configure="$configure -e 's/\${PROJECT_VERSION_MINOR}/$2/' -e 's/\${PROJECT_VERSION_PATCH}/$3/'"
configure="$configure snappy/snappy-stubs-public.h.in > {{OUTPUT_DIR}}/snappy-stubs-public.h"

compile() { # NAME INPUTS SOURCE OBJECT
  printf '    { "name": "%s", "inputs": [%s], "deps": ["configure"],\n' "$1" "$2"
  printf '      "cmds": [ { "exec": ["c++", "-O1", "-std=c++14", "-DNDEBUG", "-I", "snappy", '
  printf '"-I", "{{DEP:configure}}", "-c", "%s", "-o", "{{OUTPUT_DIR}}/%s"] } ] },\n' "$3" "$4"
}

{
  printf '{\n  "version": 1,\n  "jobs": [\n'
  printf '    { "name": "configure", "inputs": ["snappy"],\n'
  printf '      "cmds": [ { "exec": ["sh", "-c", "%s"] } ] },\n' "$configure"
  deps=
  objects=
  for file in snappy snappy-c snappy-sinksource snappy-stubs-internal; do
    compile "c++ $file.cc" '"snappy"' "snappy/$file.cc" "$file.o"
    deps="$deps, \"c++ $file.cc\""
    objects="$objects, \"{{DEP:c++ $file.cc}}/$file.o\""
  done
  printf '    { "name": "ar libsnappy.a", "deps": [%s],\n' "${deps#, }"
  printf '      "cmds": [ { "exec": ["ar", "rcD", "{{OUTPUT_DIR}}/libsnappy.a"%s] } ] },\n' "$objects"
  compile "c++ roundtrip.cc" '"snappy", "host/roundtrip.cc"' host/roundtrip.cc roundtrip.o
  printf '    { "name": "link roundtrip", "deps": ["c++ roundtrip.cc", "ar libsnappy.a"],\n'
  printf '      "cmds": [ { "exec": ["c++", "-o", "{{OUTPUT_DIR}}/roundtrip", '
  printf '"{{DEP:c++ roundtrip.cc}}/roundtrip.o", "{{DEP:ar libsnappy.a}}/libsnappy.a"] } ] },\n'
  printf '    { "name": "run roundtrip", "inputs": ["snappy"], "deps": ["link roundtrip"],\n'
  printf '      "cmds": [ { "exec": ["{{DEP:link roundtrip}}/roundtrip", "snappy/format_description.txt", '
  printf '"snappy/snappy.cc"] } ] }\n  ]\n}\n'
} > "$out/graph.json"
echo "$out/graph.json"
