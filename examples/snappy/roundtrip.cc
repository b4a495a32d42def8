// Compresses each file named by its arguments, decompresses it, and fails unless it comes back as it was and
// became smaller.
#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>

#include "snappy.h"

int main(int argc, char** argv) {
  size_t read = 0, written = 0;
  for (int arg = 1; arg < argc; arg++) {
    std::ifstream file(argv[arg], std::ios::binary);
    if (!file) {
      std::perror(argv[arg]);
      return 2;
    }
    std::string original{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    std::string compressed, back;
    snappy::Compress(original.data(), original.size(), &compressed);
    if (compressed.size() >= original.size() ||
        !snappy::Uncompress(compressed.data(), compressed.size(), &back) || back != original) {
      std::fprintf(stderr, "%s does not come back as it was\n", argv[arg]);
      return 1;
    }
    read += original.size();
    written += compressed.size();
  }
  std::printf("%zu bytes became %zu and came back\n", read, written);
  return 0;
}
