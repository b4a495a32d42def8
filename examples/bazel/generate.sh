#!/bin/sh
# Lays a Bazel workspace with C++ libraries, programs, tests and generated files into a directory: generate.sh DIR
set -eu

modules=12

. "$(dirname "$0")/../directories.sh"
cp -R "$here/workspace/." "$out/"

# Module n adds the numbers of its table to the sum of module n / 2.
for n in $(seq 1 "$modules"); do
  below=$((n / 2))
  module=$out/modules/m$n
  mkdir -p "$module"
  deps=
  include=
  sum_below=0
  if [ "$below" -gt 0 ]; then
    deps="\"//modules/m$below:sum\""
    include="#include \"modules/m$below/sum.h\""
    sum_below="sum_m$below()"
  fi
  cat > "$module/BUILD" << END
package(default_visibility = ["//visibility:public"])

exports_files(["sum.cc"])

genrule(
    name = "table",
    outs = ["table.h"],
    cmd = "for k in 1 2 3 4 5 6 7 8; do echo \$\$((k * $n)),; done > \$@",
)

cc_library(
    name = "sum",
    srcs = [
        "sum.cc",
        "table.h",
    ],
    hdrs = ["sum.h"],
    deps = [$deps],
)

cc_test(
    name = "sum_test",
    size = "small",
    srcs = ["sum_test.cc"],
    deps = [":sum"],
)
END
  cat > "$module/sum.h" << END
#pragma once

long sum_m$n();
END
  cat > "$module/sum.cc" << END
#include "modules/m$n/sum.h"

#include <numeric>
#include <vector>

$include

long sum_m$n() {
  const std::vector<long> table = {
#include "modules/m$n/table.h"
  };
  return std::accumulate(table.begin(), table.end(), static_cast<long>($sum_below));
}
END
  expected=0
  ancestor=$n
  while [ "$ancestor" -gt 0 ]; do
    expected=$((expected + 36 * ancestor))
    ancestor=$((ancestor / 2))
  done
  cat > "$module/sum_test.cc" << END
#include "modules/m$n/sum.h"

#include <cstdio>

int main() {
  std::printf("%ld\n", sum_m$n());
  return sum_m$n() == $expected ? 0 : 1;
}
END
done

libraries=
sources=
includes=
terms=0
for n in $(seq 1 "$modules"); do
  libraries="$libraries
        \"//modules/m$n:sum\","
  sources="$sources
        \"//modules/m$n:sum.cc\","
  includes="$includes
#include \"modules/m$n/sum.h\""
  terms="$terms + sum_m$n()"
done
cat > "$out/apps/BUILD" << END
load(":pages.bzl", "pages")

cc_binary(
    name = "total",
    srcs = ["total.cc"],
    deps = [$libraries
    ],
)

genrule(
    name = "answer",
    outs = ["answer.txt"],
    cmd = "\$(location :total) > \$@",
    exec_tools = [":total"],
)

genrule(
    name = "sizes",
    srcs = [$sources
    ],
    outs = ["sizes.txt"],
    cmd = "\$(location //tools:count) \$(SRCS) > \$@",
    exec_tools = ["//tools:count"],
)

pages(
    name = "pages",
    src = ":sizes.txt",
)

# Reads a directory that another action wrote.
genrule(
    name = "contents",
    srcs = [":pages"],
    outs = ["contents.txt"],
    cmd = "cd \$(location :pages) && find . | sort > \$\$OLDPWD/\$@",
)

sh_test(
    name = "answer_test",
    size = "small",
    srcs = ["answer_test.sh"],
    data = [":answer.txt"],
)
END
cat > "$out/apps/answer_test.sh" << 'END'
#!/bin/sh
# The answer is a number, and it is found where tests find their data.
grep -qx '[0-9][0-9]*' apps/answer.txt
END
chmod +x "$out/apps/answer_test.sh"
cat > "$out/apps/total.cc" << END
#include <cstdio>
$includes

int main() {
  std::printf("%ld\n", $terms);
  return 0;
}
END
echo "$out"
