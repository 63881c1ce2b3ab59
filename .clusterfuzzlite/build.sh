#!/bin/bash -eu
# Builds every target into $OUT with its seeds, what once found something among them, and its dictionary. For ClusterFuzzLite and OSS-Fuzz,
# whose image has cargo-fuzz and a nightly toolchain and sets SANITIZER and RUSTFLAGS.
cd "$SRC/qmig_e2k"
python3 fuzz/make_seeds.py
cargo fuzz build -O --debug-assertions
for source in fuzz/fuzz_targets/*.rs; do
    name=$(basename "$source" .rs)
    cp "fuzz/target/x86_64-unknown-linux-gnu/release/$name" "$OUT/"
    seeds=$(mktemp -d)
    for directory in "fuzz/corpus/$name" "fuzz/regressions/$name"; do
        if [ -d "$directory" ]; then cp "$directory"/* "$seeds/"; fi
    done
    python3 -c 'import shutil, sys; shutil.make_archive(sys.argv[1], "zip", sys.argv[2])' "$OUT/${name}_seed_corpus" "$seeds"
    rm -r "$seeds"
    case $name in
        stream | null | memory | ram | commands) cp fuzz/stream.dict "$OUT/$name.dict" ;;
    esac
done
