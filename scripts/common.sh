# What the scripts share; sourced, never run. The caller has changed into the repository's root.

# The compiler through ccache where there is one; paths are kept relative, so that clones share what it holds. It goes by the
# files themselves (CCACHE_DEPEND) and not by what the preprocessor makes of them: to that a header with another comment is the
# same, but a precompiled one knows its headers by their bytes, and one of the old bytes would define them all a second time.
if command -v ccache >/dev/null 2>&1; then
  export CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1 CCACHE_SLOPPINESS=pch_defines,time_macros CCACHE_DEPEND=1
  cached=(ccache)
else
  cached=()
fi

# configure DIR COMPILER OPTION...: sets a build folder up, or brings one that is there to these options.
configure() {
  local dir=$1 compiler=$2
  shift 2
  local options=(-Dbenchmarks=false "$@")
  # A folder made with other options, or by another compiler, is made anew: options that are no longer given stay set.
  local wanted="$compiler ${options[*]}"
  if [ -e "$dir/build.ninja" ] && [ "$(cat "$dir/.made-with" 2>/dev/null)" = "$wanted" ]; then return; fi
  rm -rf "$dir"
  local said
  said=$(CXX="${cached[*]} $compiler" meson setup "$dir" "${options[@]}" 2>&1) || { echo "$said" >&2; return 1; }
  printf '%s' "$wanted" >"$dir/.made-with"
}

# Sanitizers stop at the first report, and say where it came from.
export ASAN_OPTIONS=detect_leaks=1:detect_stack_use_after_return=1:strict_init_order=1:check_initialization_order=1
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
