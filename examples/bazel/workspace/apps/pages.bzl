"""A rule whose output is a directory with files that only the action knows."""

def _pages_impl(ctx):
    directory = ctx.actions.declare_directory(ctx.label.name)
    ctx.actions.run_shell(
        inputs = [ctx.file.src],
        outputs = [directory],
        arguments = [ctx.file.src.path, directory.path],
        command = """
            number=0
            while read -r line; do
              number=$((number + 1))
              mkdir -p "$2/$((number % 3))"
              echo "$line" > "$2/$((number % 3))/page-$number.txt"
            done < "$1"
        """,
        mnemonic = "Pages",
    )
    return DefaultInfo(files = depset([directory]))

pages = rule(
    implementation = _pages_impl,
    attrs = {"src": attr.label(allow_single_file = True, mandatory = True)},
)
