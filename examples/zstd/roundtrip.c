/* Compresses each file named by its arguments on several levels, decompresses it, and fails unless it comes
   back as it was and became smaller. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "zstd.h"

static char *contents(const char *name, size_t *len) {
  FILE *file = fopen(name, "rb");
  if (file == NULL || fseek(file, 0, SEEK_END) != 0) return NULL;
  *len = (size_t)ftell(file);
  rewind(file);
  char *bytes = malloc(*len + 1);
  if (bytes != NULL && fread(bytes, 1, *len, file) != *len) bytes = NULL;
  fclose(file);
  return bytes;
}

int main(int argc, char **argv) {
  static const int levels[] = {1, 3, 9, 19};
  size_t read = 0, written = 0;
  for (int arg = 1; arg < argc; arg++) {
    size_t len;
    char *original = contents(argv[arg], &len);
    if (original == NULL) {
      perror(argv[arg]);
      return 2;
    }
    size_t bound = ZSTD_compressBound(len);
    char *compressed = malloc(bound), *back = malloc(len + 1);
    for (size_t n = 0; n < sizeof levels / sizeof *levels; n++) {
      size_t size = ZSTD_compress(compressed, bound, original, len, levels[n]);
      if (ZSTD_isError(size) || size >= len || ZSTD_decompress(back, len, compressed, size) != len ||
          memcmp(original, back, len) != 0) {
        fprintf(stderr, "%s: level %d does not bring it back\n", argv[arg], levels[n]);
        return 1;
      }
      read += len;
      written += size;
    }
    free(original), free(compressed), free(back);
  }
  printf("zstd %s works: %zu bytes became %zu\n", ZSTD_versionString(), read, written);
  return 0;
}
