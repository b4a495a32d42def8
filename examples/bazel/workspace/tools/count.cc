// Prints the number of bytes and lines of each file that is named.
#include <cstdio>
#include <fstream>
#include <string>

int main(int argc, char** argv) {
  for (int at = 1; at < argc; ++at) {
    std::ifstream file(argv[at]);
    if (!file) {
      std::fprintf(stderr, "%s cannot be read\n", argv[at]);
      return 1;
    }
    long bytes = 0, lines = 0;
    for (std::string line; std::getline(file, line); ++lines) {
      bytes += static_cast<long>(line.size()) + 1;
    }
    std::printf("%s: %ld bytes in %ld lines\n", argv[at], bytes, lines);
  }
  return 0;
}
