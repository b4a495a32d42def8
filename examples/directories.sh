# Read by each `generate.sh DIR`: makes DIR. Sets $here, where that script is, and $out, DIR, both absolute.
if [ $# -ne 1 ]; then
  echo "usage: $0 DIR" >&2
  exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
