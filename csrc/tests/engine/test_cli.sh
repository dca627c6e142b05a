#!/bin/sh
# The command: its exit codes, its output streams, and files that are written completely or not at
# all.
#   sh csrc/tests/engine/test_cli.sh MAMBA     from the root of the repository; runs $RUN MAMBA
mamba=$(realpath "$1")
# Windows has no gzip, no /sys and other limits.
posix=yes
case "$RUN $(uname -s)" in *wine* | *MINGW* | *MSYS* | *CYGWIN*) posix= ;; esac
model=$PWD/csrc/tests/golden/conv3_cross_odd_image.bin
colours=$PWD/csrc/tests/golden/colours.bin # 8 x 8 x 3, classes cat, Käse and a "b", c\
folder=$(mktemp -d) || exit 1
trap 'rm -rf "$folder"' EXIT
cd "$folder" || exit 1
mkdir bin && ln -s "$mamba" bin/mamba && ln -s "$mamba" bin/mnist-mamba || exit 1
mamba=$folder/bin/mamba # CMake builds it as mnist-mamba; its usage shows the name
passed=0
failed=0

# check NAME CONDITION...: runs the condition
check() {
    name=$1
    shift
    if "$@"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "failed: $name"
        cat out err
    fi
}

# expect CODE ARGUMENTS...: runs mamba; an error must leave stdout empty and print a message
expect() {
    code=$1
    shift
    $RUN "$mamba" "$@" >out 2>err
    got=$?
    check "exit code $got, expected $code: mamba $*" [ "$got" -eq "$code" ]
    if [ "$code" -ne 0 ]; then
        check "an error writes nothing on stdout: mamba $*" [ ! -s out ]
        check "an error says something: mamba $*" [ -s err ]
    fi
}

# says TEXT: checks that the last error message contains it
says() {
    check "the message holds '$1'" grep -q -e "$1" err
}

field() {
    $RUN "$mamba" info "$model" --json | sed "s/.*\"$1\":\([0-9]*\).*/\1/"
}

# byte N: one byte
byte() {
    printf "\\$(printf %03o "$1")"
}

be32() {
    byte 0
    byte 0
    byte $(($1 / 256))
    byte $(($1 % 256))
}

height=$(field height)
width=$(field width)
classes=$(field n_classes)
pixels=$((height * width))
head -c $((pixels * 4)) /dev/zero >input.bin

# images N HEIGHT WIDTH and labels LABEL...: the bytes of an IDX file
images() {
    be32 2051; be32 "$1"; be32 "$2"; be32 "$3"
    head -c $(($1 * $2 * $3)) /dev/zero
}

labels() {
    be32 2049; be32 $#
    for label in "$@"; do byte "$label"; done
}

images 3 "$height" "$width" >images.idx
labels 0 1 $((classes - 1)) >labels.idx

# usage LINE ARGUMENTS...: runs mamba with wrong arguments, which print what is wrong and LINE
usage() {
    line=$1
    shift
    expect 2 "$@"
    check "two lines: mamba $*" [ "$(wc -l <err)" -eq 2 ]
    check "the usage of this command: mamba $*" [ "$(sed -n 2p err)" = "usage: mamba $line" ]
}

plain_usage="MODEL INPUT [--show] [--json] [--exit-margin X]"
eval_usage="eval MODEL IMAGES.idx LABELS.idx [--json] [--logits FILE] [--asked FILE] [--threads N] \
[--exit-margin X]"
bench_usage="bench MODEL [IMAGES.idx] [--batch N] [--threads N] [--rounds N] [--json] [--exit-margin X]"
expect 0 --help
check "help on stdout" grep -q "Exit codes" out
for line in "$plain_usage" "$eval_usage" "info MODEL [--json]" "$bench_usage" \
    "embed MODEL [--name NAME]"; do
    check "the help shows: $line" grep -qFx "  mamba $line" out
done
expect 0 eval --help
expect 0 --version
expect 0 --version "$model"
usage "$plain_usage"
says 'files: got 0, expected 2'
usage "$plain_usage" "$model"
usage "$plain_usage" "$model" input.bin extra
says 'files: got 3, expected 2'
usage "$plain_usage" "$model" input.bin --threads 2
says '--threads: not an option here'
usage "$plain_usage" --unknown
says "unknown option '--unknown'"
usage "$plain_usage" - input.bin
says '-: stdin can be one file, and not MODEL'
usage "info MODEL [--json]" info "$model" --threads 2
says '--threads: not an option here'
usage "info MODEL [--json]" info -
usage "$plain_usage" "$model" input.bin --jsn
usage "$eval_usage" eval "$model" images.idx
says 'files: got 2, expected 3'
usage "$eval_usage" eval "$model" images.idx labels.idx --logits
usage "$eval_usage" eval "$model" images.idx labels.idx --threads 0
usage "$eval_usage" eval "$model" - -
usage "$bench_usage" bench "$model" --batch 1x
usage "$bench_usage" bench "$model" --rounds 99999999999999999999
usage "info MODEL [--json]" info
usage "embed MODEL [--name NAME]" embed
usage "embed MODEL [--name NAME]" embed "$model" --json --name

# The command under another name, as it is installed
$RUN bin/mnist-mamba embed >out 2>err
says '^mnist-mamba: files: got 0, expected 1$'
says '^usage: mnist-mamba embed MODEL \[--name NAME\]$'
check "the help of mnist-mamba" sh -c "$RUN bin/mnist-mamba --help | grep -qF '  mnist-mamba info MODEL'"

# A word that is neither a subcommand nor a file
usage "$plain_usage" frobnicate
says '^mamba: frobnicate: neither a file nor a subcommand: eval, info, bench, embed$'
usage "$plain_usage" frobnicate "$model" images.idx labels.idx
says 'eval, info, bench, embed'
usage "$plain_usage" bnech "$model" --rounds 3
says 'eval, info, bench, embed'
expect 3 frobnicate "$model"
says '^mamba: frobnicate: neither a file nor a subcommand: eval, info, bench, embed$'
check "one line" [ "$(wc -l <err)" -eq 1 ]

# A model as a C array: its bytes, its name
bytes() {
    sed -n '/{$/,/}/p' out | sed '1d;$d' | tr ',' '\n' | grep .
}
od -An -v -tu1 "$model" | tr -s ' ' '\n' | grep . >wanted
for option in "" --no-mmap; do
    expect 0 embed "$model" $option
    bytes >got
    check "the bytes of the model" cmp -s wanted got
    check "its name" grep -q '^alignas(64) static const unsigned char conv3_cross_odd_image\[\] = {$' out
done
cp "$model" "7 seg-ments.v2.bin"
expect 0 embed "7 seg-ments.v2.bin"
check "a name made of the file's" grep -q ' __seg_ments\[\] = {$' out
expect 0 embed "$model" --name digits_2
check "a name of its own" grep -q ' digits_2\[\] = {$' out
cp "$model" int.bin
expect 0 embed int.bin
check "a name that is not a keyword" grep -q ' _nt\[\] = {$' out
for name in "" int while 2digits "a b" 'x[]={0};int y' "$(printf '%064d' 0 | tr 0 a)"; do
    expect 2 embed "$model" --name "$name"
    says '--name: got .* expected a name of C'
done
expect 3 embed missing.bin
expect 4 embed input.bin

expect 0 "$model" input.bin
check "a table" grep -q "^class [0-9]" out
expect 0 "$model" input.bin --json
check "prediction" grep -q '^{"prediction":\([0-9]*\),"class":"\1","probabilities":\[.*\],"logits":\[.*\],"members_asked":1}$' out
expect 0 info "$model"
expect 0 info "$model" --json
expect 0 bench "$model" --rounds 1 --batch 2 --json
check "median" grep -q '"median_us":[0-9.]*,.*"load_us":' out

expect 0 "$model" input.bin --no-mmap
expect 0 info --no-mmap "$model"
expect 0 eval "$model" images.idx labels.idx --no-mmap
# This file of the kernel cannot be mapped, and a copy has fewer bytes than its size says.
shrunk=/sys/kernel/mm/transparent_hugepage/enabled
if [ "$posix" ] && [ -r $shrunk ]; then
    cp "$model" model.bin
    for arguments in "info $shrunk" "model.bin $shrunk" "eval model.bin $shrunk labels.idx" \
        "eval model.bin images.idx $shrunk"; do
        expect 3 $arguments
        says "cannot map"
        expect 3 $arguments --no-mmap
        says "when it was opened"
    done
fi

expect 3 missing.bin input.bin
expect 3 missing.bin input.bin --no-mmap
expect 3 "$model" missing.bin
says '^mamba: missing.bin: cannot open'
expect 3 eval "$model" images.idx missing.idx
says '^mamba: missing.idx: cannot open'
expect 3 /dev/null input.bin
expect 3 . input.bin
expect 3 "$model" .
: >empty
expect 4 empty input.bin
expect 4 empty input.bin --no-mmap
expect 4 input.bin input.bin
expect 5 "$model" empty
says "file size"

# Streams: the same answers as from files
$RUN "$mamba" "$model" input.bin --json >table 2>err
expect 0 "$model" - --json <input.bin
check "stdin" cmp table out
expect 0 "$model" --no-mmap --json - <input.bin
check "stdin, options first" cmp table out
cat input.bin | $RUN "$mamba" "$model" - --json >out 2>err
check "a pipe" cmp table out
expect 5 "$model" - <empty
says '^mamba: stdin: file size: got 0 bytes, expected'
expect 5 "$model" - <images.idx
says '^mamba: stdin: file size: got'
expect 3 "$model" - <&-
says '^mamba: stdin: cannot read'
expect 3 "$model" - <.
$RUN "$mamba" eval "$model" images.idx labels.idx --json --logits expected.f32 >table 2>err
for kind in images labels; do gzip -c $kind.idx >$kind.gz; done
gzip -c input.bin >input.bin.gz
packed() {
    expect 0 eval "$model" "$@" --json --logits packed.f32
    check "the same accuracy: $*" cmp table out
    check "the same logits: $*" cmp expected.f32 packed.f32
}
packed - labels.idx <images.idx
packed images.idx - <labels.idx
if [ "$posix" ]; then
    packed - labels.gz <images.idx
    packed images.gz labels.gz
    packed images.gz labels.gz --no-mmap
    packed images labels
    packed images labels <&-
    packed images labels.idx
    expect 0 "$model" input.bin.gz
    # Under a parent that waits for no child, which programs inherit.
    if env --ignore-signal=CHLD true 2>/dev/null; then
        env --ignore-signal=CHLD $RUN "$mamba" eval "$model" images labels --json >out 2>err
        check "gzip under an ignored SIGCHLD" cmp table out
    fi
    rm images.gz
    expect 3 eval "$model" images labels
    says '^mamba: images: cannot open'
    printf x >>labels.gz
    expect 5 eval "$model" images.idx labels
    says '^mamba: labels.gz: damaged gzip'
    check "one line" [ "$(wc -l <err)" -eq 1 ]
    if [ -z "$RUN" ]; then
        PATH=/nonexistent "$mamba" "$model" input.bin.gz >out 2>err
        check "without gzip" [ $? -eq 3 ]
        says '^mamba: input.bin.gz: cannot run gzip: install it'
    fi
else
    expect 3 eval "$model" images.gz labels.gz
    says '^mamba: images.gz: cannot start gzip: Function not implemented: unpack the file$'
fi

# A path that is too long is not cut: another file may have the shorter name.
if [ "$posix" ]; then
    deep=$(printf '%0250d/' 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16)
    mkdir -p "$deep"
    for length in 77 78 79; do # of the last name; a path has 4095 bytes at most
        long=$deep$(printf "%0${length}d" 0)
        cp input.bin "$long"
        expect 0 "$model" "$long"
        rm "$long"
        expect 3 "$model" "$long"
    done
    cp input.bin "$long"
    expect 3 "$model" "${long}x"
    says ': cannot open: File *name too long$'
    rm "$long"
    cp input.bin "$deep$(printf '%077d' 0).g"
    expect 3 "$model" "$deep$(printf '%077d' 0)"
fi

# Names outside ASCII, which wine passes on only in such a locale
mkdir "Ordnér 日本"
cp "$model" "Ordnér 日本/mödel.bin"
(
    export LC_ALL=C.UTF-8
    expect 0 "Ordnér 日本/mödel.bin" input.bin
    expect 3 info "Ordnér 日本/fehlt.bin"
    says '^mamba: Ordnér 日本/fehlt.bin: cannot open'
    [ "$failed" -eq 0 ]
)
check "a path in UTF-8" [ $? -eq 0 ]

cp "$model" eval
# pictures: a drawn stroke, 8 bits and 16, grey and RGB, from a file, stdin and gzip
picture() {
    printf "$1\n# a comment\n40 %s\n$2\n" "${4:-30}"
    for row in 1 2 3 4 5 6 7 8 9 10; do
        head -c $((3 * 40 * $3)) /dev/zero | tr '\000' '\310'
        if [ $row -lt 9 ]; then head -c 12 /dev/zero; fi
    done | head -c $((30 * 40 * $3))
}
picture P5 255 1 >grey.pgm
picture P6 255 3 >colour.ppm
picture P5 65535 2 >deep.pgm
gzip -c grey.pgm >packed.pgm.gz
for file in grey.pgm colour.ppm deep.pgm ${posix:+packed.pgm}; do
    expect 0 "$model" $file
    check "a class: $file" grep -q '^class [0-9]' out
done
expect 0 "$model" - --json <grey.pgm
check "JSON says what was done" \
    grep -q '"picture":{"width":40,"height":30,"channels":1,"preparation":"resize"}}$' out
expect 0 "$model" grey.pgm --json --show
check "JSON has the pixels" grep -q '"pixels":\[[0-9]' out
expect 0 "$model" grey.pgm --show
check "a line for each row" [ "$(wc -l <out)" -eq $((height + 1 + classes)) ]
expect 0 "$model" input.bin --show
picture P5 255 1 31 >short.pgm
expect 5 "$model" short.pgm
says '^mamba: short.pgm: file size: got [0-9]* bytes, expected [0-9]* (by its header)'
for header in 'P5 0 3 255' 'P5 70000 3 255' 'P5 3 3 0' 'P5 3 3 65536' 'P5 x' 'P5 3 3'; do
    printf "$header\n" >bad.pgm
    expect 5 "$model" bad.pgm
    says '^mamba: bad.pgm: picture header: got'
done
printf 'P5 70000 3 255\n' >bad.pgm
expect 5 "$model" bad.pgm
says 'got width 70000, height 3, maximum 255'
# A header has up to 256 bytes, also of a stream, of which no more is read at first.
for spaces in 246 247; do # before the last number and the space that ends the header
    printf "P5 9 9%${spaces}s255 %81s" '' '' >long.pgm
    gzip -c long.pgm >long.pgm.gz
    case $spaces in 246) code=0 ;; *) code=5 ;; esac
    for file in long.pgm ${posix:+long.pgm.gz} -; do
        expect $code "$model" $file <long.pgm
    done
done
says '^mamba: stdin: picture header: got width 9, height 9, maximum 0, .* first 256 bytes$'
printf 'P2 1 1 255 7' >text.pgm
expect 5 "$model" text.pgm
says 'got P2, expected P5'
printf '\211PNG\r\n\032\n' >photo.png
expect 5 "$model" photo.png
says "^mamba: photo.png: file size: got 8 bytes, expected .*; a picture must be binary PGM or PPM)$"
mnist=$(dirname "$model")/mixed_members.bin # which has that preparation
printf 'P5 9 9 255\n%81s' '' >blank.pgm
expect 7 "$mnist" blank.pgm
says '^mamba: blank.pgm: nothing drawn: got 9 x 9 pixels'
usage "info MODEL [--json]" info "$model" --show
expect 0 ./eval input.bin
cp "$model" 7.bin
expect 0 7.bin input.bin

printf '\377\377\377\377' | dd of=input.bin bs=1 seek=8 conv=notrunc 2>err
expect 5 "$model" input.bin
says "pixel 2: got"

expect 0 eval "$model" images.idx labels.idx --json --logits logits.f32
check "counts" grep -q '^{"n":3,"correct":[0-3],"accuracy":[0-9.]*,"members_asked_mean":1,"members_asked":\[3\]}$' out
check "size of the logits" [ "$(wc -c <logits.f32)" -eq $((3 * classes * 4)) ]
for margin in -1 nan 2e6 '' x 1x -1e-60 1e-46 1e-40 1e-400 -1e-400 1e400; do
    expect 2 "$model" input.bin --exit-margin "$margin"
    says "^mamba: --exit-margin: got '$margin', expected 0 or 2^-126..1e6"
done
ln -s both another
for second in both ./both "$PWD/both" another; do
    rm -f both
    expect 3 eval "$model" images.idx labels.idx --logits both --asked "$second"
    says "^mamba: $second: expected a regular file other than stdout, stderr and --logits"
    check "the logits are complete" cmp logits.f32 both
done
expect 0 eval "$model" images.idx labels.idx --exit-margin 1e6 --asked asked
check "one byte for each image" [ "$(od -An -tu1 asked)" = "   1   1   1" ]
expect 0 bench "$model" images.idx --batch 4 --rounds 1 --json
check "a batch of repeated images" grep -q '"calls":1,.*"members_asked":\[4\]}' out
expect 5 bench "$model" labels.idx
expect 0 bench "$model" images.idx --rounds 1 --json
check "each image once" grep -q '"calls":3,.*"members_asked":\[3\]}' out
expect 0 eval "$model" images.idx labels.idx --threads 2 --logits logits2.f32
check "the same logits on two threads" cmp logits.f32 logits2.f32
expect 3 eval "$model" images.idx labels.idx --logits missing/logits
says '^mamba: missing/logits: cannot write: No such file'
expect 3 eval "$model" images.idx labels.idx --logits /dev/null
expect 3 eval "$model" images.idx labels.idx --logits .
if [ -h /dev/stdout ]; then
    expect 3 eval "$model" images.idx labels.idx --logits /dev/stdout
    says '^mamba: /dev/stdout: expected a regular file'
    $RUN "$mamba" eval "$model" images.idx labels.idx --logits /dev/stdout 2>err | cat >out
    says '^mamba: /dev/stdout: expected a regular file'
    check "nothing is written to a pipe" [ ! -s out ]
fi

# The logits are larger than a file may be here, whether a block has 512 or 1024 bytes. Under
# such a limit wine crashes.
if [ "$posix" ]; then
    many=$((1024 / classes + 1))
    images $many "$height" "$width" >many.idx
    labels $(seq $many | sed 's/.*/0/') >many_labels.idx
    echo old >logits.f32
    before=$(ls)
    (ulimit -f 1; $RUN "$mamba" eval "$model" many.idx many_labels.idx \
        --logits logits.f32 >out 2>err)
    check "a file that cannot grow is exit code 3" [ $? -eq 3 ]
    says '^mamba: logits.f32: cannot write: File too large'
    check "the old file stays" [ "$(cat logits.f32)" = old ]
    check "no other file stays" [ "$(ls)" = "$before" ]
fi

expect 5 eval "$model" labels.idx images.idx
says '^mamba: labels.idx: file size'
expect 5 eval "$model" images.idx images.idx
says '^mamba: images.idx: IDX magic'
labels 0 1 >labels2.idx
labels 0 1 0 0 >labels4.idx
for n in 2 4; do
    expect 5 eval "$model" images.idx labels$n.idx
    says "^mamba: labels$n.idx: labels: got $n, expected one for each of 3 images"
done
labels 0 "$classes" 255 >large.idx
expect 5 eval "$model" images.idx large.idx
says "^mamba: large.idx: label 1: got $classes, expected 0..$((classes - 1))"
for size in "$((height + 1)) $width" "$height $((width + 1))"; do
    images 3 $size >other.idx
    expect 5 eval "$model" other.idx labels.idx
    says "^mamba: other.idx: image size: got $(echo $size | sed 's/ / x /') x 1, expected"
done

# Colours: images with a fourth dim, and names in the answers
colour_images() {
    be32 2052; be32 "$1"; be32 8; be32 8; be32 "$2"
    head -c $(($1 * 64 * $2)) /dev/zero
}
colour_images 3 3 >colours.idx
labels 0 1 2 >colour_labels.idx
head -c 768 /dev/zero >colours.bin
expect 0 eval "$colours" colours.idx colour_labels.idx --json
check "one of three" grep -q '"n":3,"correct":1,' out
expect 5 eval "$colours" images.idx labels.idx
says "image size: got $height x $width x 1, expected the model's 8 x 8 x 3"
colour_images 3 5 >five.idx
expect 5 eval "$colours" five.idx colour_labels.idx
says "IDX dim 3: got 5, expected 1..4"
expect 5 "$colours" input.bin
says "file size"
expect 0 "$colours" colours.bin
check "the name of the class" grep -qE '^class (cat|Käse|a "b", c\\)$' out
check "three rows" [ "$(grep -cE '^ *(cat|Käse|a "b", c\\)  +[0-9.]+ %' out)" -eq 3 ]
expect 0 "$colours" colours.bin --json
check "the name as JSON" grep -qE '"class":"(cat|Käse|a \\"b\\", c\\\\)","prob' out
expect 0 info "$colours"
check "names" grep -qxF 'class_names   cat, Käse, a "b", c\' out
expect 0 info "$colours" --json
check "names as JSON" grep -qF '"class_names":["cat","Käse","a \"b\", c\\"],' out

# Instruction sets. MAMBA_ISA is restored afterwards.
isa=${MAMBA_ISA-}
export MAMBA_ISA=mmx
expect 2 "$model" input.bin
says "MAMBA_ISA: got mmx"
MAMBA_ISA=scalar
expect 0 info "$model"
MAMBA_ISA=
expect 0 info "$model"
MAMBA_ISA=$isa
[ -n "$isa" ] || unset MAMBA_ISA

# With little more memory than a start needs. Sanitizers and qemu need more than this tries.
limit=2000
until (ulimit -v $limit && "$mamba" --version) >out 2>err || [ $limit -gt 50000 ]; do
    limit=$((limit + 1000))
done
if [ -z "$RUN" ] && [ $limit -le 50000 ]; then
    (ulimit -v $((limit + 2000)) && "$mamba" bench "$model" --batch 65536) >out 2>err
    check "no memory is exit code 6" [ $? -eq 6 ]
    says "memory"
fi

# full ARGUMENTS...: runs mamba with stdout on a full disk
full() {
    $RUN "$mamba" "$@" >/dev/full 2>err
    check "a full disk is noticed: $*" [ $? -eq 3 ]
}

if [ -w /dev/full ]; then
    head -c $((pixels * 4)) /dev/zero >zero.bin
    full info "$model"
    full "$model" zero.bin --json
    full --help
    full --version
fi

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
