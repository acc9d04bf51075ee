"""Programming languages by file name: GitHub Linguist's names, the languages that The Stack's training subset holds.

Source of names and extensions: github-linguist/linguist, `languages.yml`; where an extension stands for several
languages (`.h`, `.m`, `.pl`, `.v`), its most common one.
"""

import re

_EXTENSIONS = """
Ada adb ads ada
Agda agda
Assembly asm s
Awk awk
Batchfile bat cmd
C c h
C# cs csx
C++ cpp cc cxx c++ hpp hh hxx h++ inl ipp tpp
Clojure clj cljs cljc edn
CMake cmake
CoffeeScript coffee
Common Lisp lisp lsp cl asd
Coq coq
Crystal cr
CSS css
CSV csv tsv
Cuda cu cuh
Cython pyx pxd pxi
D d di
Dart dart
Dockerfile dockerfile
Elixir ex exs
Elm elm
Emacs Lisp el
Erlang erl hrl
F# fs fsi fsx
Fortran f f77 f90 f95 f03 f08
GLSL glsl vert frag comp geom
Go go
GraphQL graphql gql
Groovy groovy gradle
Haskell hs lhs
HCL hcl tf tfvars
HTML html htm xhtml
Idris idr
INI ini cfg
Isabelle thy
Java java
JavaScript js jsx mjs cjs es6
JSON json jsonl geojson webmanifest
Julia jl
Jupyter Notebook ipynb
Kotlin kt kts
Lean lean
Less less
LLVM ll
Lua lua
Makefile mk mak make
Markdown md markdown mdx mkd
MATLAB matlab
Metal metal
MLIR mlir
Nim nim nims
Nix nix
Objective-C m mm
OCaml ml mli mll mly
Pascal pas pp dpr
Perl pl pm
PHP php phtml
PowerShell ps1 psm1 psd1
Prolog prolog
Protocol Buffer proto
Python py pyi pyw
R r
Racket rkt
reStructuredText rst
Ruby rb rake gemspec ru
Rust rs
Sass sass
Scala scala sc sbt
Scheme scm ss sld
SCSS scss
Shell sh bash zsh ksh
Solidity sol
SQL sql
Standard ML sml
Starlark bzl star
Stylus styl
SVG svg
Swift swift
SystemVerilog sv svh
Tcl tcl
TeX tex sty
Thrift thrift
TOML toml
TypeScript ts tsx mts cts
Verilog v vh
VHDL vhd vhdl
Vim Script vim
Visual Basic .NET vb vbs
Vue vue
Svelte svelte
WebAssembly wat wast
WGSL wgsl
XML xml xsd xsl xslt plist
YAML yaml yml
Zig zig
"""
_NAMES = {
    "makefile": "Makefile",
    "gnumakefile": "Makefile",
    "dockerfile": "Dockerfile",
    "containerfile": "Dockerfile",
    "cmakelists.txt": "CMake",
    "rakefile": "Ruby",
    "gemfile": "Ruby",
    "vagrantfile": "Ruby",
    "jenkinsfile": "Groovy",
    "build": "Starlark",
    "build.bazel": "Starlark",
    "workspace": "Starlark",
    "sconstruct": "Python",
    "sconscript": "Python",
    "justfile": "Just",
    ".bashrc": "Shell",
    ".vimrc": "Vim Script",
}
_INTERPRETERS = {
    "python": "Python",
    "sh": "Shell",
    "bash": "Shell",
    "zsh": "Shell",
    "ksh": "Shell",
    "dash": "Shell",
    "node": "JavaScript",
    "deno": "TypeScript",
    "perl": "Perl",
    "ruby": "Ruby",
    "lua": "Lua",
    "php": "PHP",
    "awk": "Awk",
    "gawk": "Awk",
    "tclsh": "Tcl",
    "rscript": "R",
    "julia": "Julia",
    "racket": "Racket",
    "runhaskell": "Haskell",
    "make": "Makefile",
}
_SHEBANG = re.compile(r"#!\s*(?:\S*/)?(?:env\s+(?:-\S+\s+)*)?(?:\S*/)?([A-Za-z]+)")


def _table() -> dict[str, str]:
    table = {}
    for line in _EXTENSIONS.strip().splitlines():
        words = line.split(" ")
        start = next(i for i, word in enumerate(words) if i and word == word.lower() and not word.startswith("."))
        table |= dict.fromkeys(words[start:], " ".join(words[:start]))
    return table


_BY_EXTENSION = _table()


def language_of(path: str, text: str = "") -> str | None:
    """Return the language of a file by its name, its extension or its first line (`#!`); None: not known."""
    name = path.rsplit("/", 1)[-1].lower()
    if name in _NAMES:
        return _NAMES[name]
    stem, dot, extension = name.rpartition(".")
    if dot and stem:
        return _BY_EXTENSION.get(extension)
    match = _SHEBANG.match(text)
    return _INTERPRETERS.get(match[1].lower()) if match else None
