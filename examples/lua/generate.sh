#!/bin/sh
# Lays the sources of Lua 5.4 and a build graph for them into a directory: generate.sh DIR
set -eu

. "$(dirname "$0")/../directories.sh"

crate=$("$here/../crate_dir.sh" lua-src)

rm -rf "$out/lua-src" "$out/host"
cp -R "$crate" "$out/lua-src"
mkdir "$out/host"
cp "$here/host.c" "$here/check.lua" "$out/host/"
lua=$(cd "$out/lua-src" && ls -d lua-5.4*)

compile() { # NAME INPUTS SOURCE OBJECT
  printf '    { "name": "%s", "inputs": [%s],\n' "$1" "$2"
  printf '      "cmds": [ { "exec": ["cc", "-O2", "-std=gnu99", "-DLUA_USE_LINUX", "-I", "%s", ' "lua-src/$lua"
  printf '"-c", "%s", "-o", "{{OUTPUT_DIR}}/%s"] } ] },\n' "$3" "$4"
}

{
  printf '{\n  "version": 1,\n  "jobs": [\n'
  deps=
  objects=
  for source in "$out/lua-src/$lua"/*.c; do
    file=$(basename "$source")
    compile "cc $file" '"lua-src"' "lua-src/$lua/$file" "${file%.c}.o"
    deps="$deps\"cc $file\", "
    objects="$objects\"{{DEP:cc $file}}/${file%.c}.o\", "
  done
  compile "cc host.c" '"lua-src", "host/host.c"' host/host.c host.o
  printf '    { "name": "link lua", "deps": [%s"cc host.c"],\n' "$deps"
  printf '      "cmds": [ { "exec": ["cc", "-o", "{{OUTPUT_DIR}}/lua", %s' "$objects"
  printf '"{{DEP:cc host.c}}/host.o", "-lm", "-ldl"] } ] },\n'
  printf '    { "name": "run check.lua", "inputs": ["host/check.lua"], "deps": ["link lua"],\n'
  printf '      "cmds": [ { "exec": ["{{DEP:link lua}}/lua", "host/check.lua"] } ] }\n'
  printf '  ]\n}\n'
} > "$out/graph.json"
echo "$out/graph.json"
