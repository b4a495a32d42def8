/* Runs the Lua script named by its first argument; the crate has no lua.c. */
#include <stdio.h>

#include "lauxlib.h"
#include "lua.h"
#include "lualib.h"

int main(int argc, char **argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: %s SCRIPT\n", argv[0]);
    return 2;
  }
  lua_State *state = luaL_newstate();
  if (state == NULL) {
    fprintf(stderr, "out of memory\n");
    return 1;
  }
  luaL_openlibs(state);
  int failed = luaL_dofile(state, argv[1]);
  if (failed) fprintf(stderr, "%s\n", lua_tostring(state, -1));
  lua_close(state);
  return failed ? 1 : 0;
}
