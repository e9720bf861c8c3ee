# The targets for users and CI. On a Debian 12 with Swift, missing packages are installed on the way.

VMM_BLK := .build/release/vmm-blk
# The commit for --version, with a + if the tree differs from it.
export VMM_BLK_COMMIT := $(shell git describe --always --abbrev=12 --dirty=+ --exclude='*' 2>/dev/null)

.PHONY: all build release program demo guest test lint test-fast test-system test-fuzz fuzz bench bench-peers conform-peers profile micro package package-test docs clean

all: release

build:
	@Scripts/setup.sh build
	swift build

release:
	@Scripts/setup.sh build
	swift build -c release

# The program alone, without the benchmarks and the tests' helpers.
program:
	@Scripts/setup.sh build
	swift build -c release --product vmm-blk

# A memory file, a device that serves it, a synthetic guest in another process, and a drawing of their rings.
# The first thing that people try: without a release build, only the program is built, whole modules at a time and without
# optimization, which takes a quarter of the time. It has its own folder, so that no other build starts over because of it.
demo:
	@Scripts/setup.sh build
	@if [ -x $(VMM_BLK) ]; then swift build -c release --product vmm-blk; else \
	  swift build --scratch-path .build/first -c release --product vmm-blk -Xswiftc -Onone -debug-info-format none; fi
	@Scripts/demo.sh

# A real Linux guest: user-mode Linux, a kernel that runs as a process; 'make guest GUEST=qemu' uses QEMU instead.
GUEST := uml
guest: program
	@Scripts/guest/demo.sh $(GUEST)

# Checks the formatting (.swift-format); 'swift format format -i -r -p Sources Tests Benchmarks Fuzz Package.swift' fixes it.
lint:
	swift format lint -r -p --strict Sources Tests Benchmarks Fuzz Package.swift

# Everything that needs no real guest.
test-fast:
	@Scripts/setup.sh build test
	swift build --build-tests
	swift test --skip-build

# Real guests, and the counts that prove what a request costs.
test-system: release
	@Scripts/setup.sh build guest qemu counts
	Scripts/counts.py
	Scripts/many.py --disks 100 --seconds 2 --check --option=--shared-workers=off
	Scripts/silent-medium.py
	Scripts/guest/test.sh

# A minute of fuzzing with fixed random numbers, after some minutes of building the fuzzers.
test-fuzz:
	@Scripts/setup.sh build
	Scripts/fuzz.py --seed 1

test: lint test-fast test-system test-fuzz

# The figures of Docs/reliability.md, for as long as you like; resumes where it stopped. Only the debug build can be told
# where to die.
MINUTES := 10
soak: release
	@Scripts/setup.sh build guest qemu
	swift build --product vmm-blk
	Scripts/soak.py $(MINUTES)

# Fuzzes every parser with libFuzzer and AddressSanitizer, for as long as you like; resumes where it stopped.
fuzz:
	@Scripts/setup.sh build
	Scripts/fuzz.py --minutes $(MINUTES)

bench: release
	@Scripts/setup.sh build bench
	Scripts/bench/bench.sh

# IMAGES names kinds of images, raw files if none: make bench-peers IMAGES=qcow2,nbd,rbd
bench-peers: release
	@Scripts/setup.sh build bench $(if $(findstring rbd,$(IMAGES)),ceph)
	Scripts/bench/peers.sh $(if $(IMAGES),--images $(IMAGES))

# Conformance reports of other back-ends: see Docs/conformance.md.
conform-peers: release
	@Scripts/setup.sh build peers
	Scripts/conform-peers.sh

# Where the CPU time of each path goes, and so what limits it.
profile: release
	@Scripts/setup.sh build bench
	Scripts/bench/profile.py

# The parts of a request in isolation: nanoseconds, and instructions by callgrind.
micro: release
	@Scripts/setup.sh build counts
	Scripts/instructions.py | .build/release/ring-cost --instructions /dev/stdin

# The book, the other documents and the libraries' symbols as HTML that reads offline, in .docs/. All outputs are regenerated first.
docs: release
	@Scripts/setup.sh docs
	Scripts/book.py pictures
	Scripts/book.py update
	Scripts/symbols.py .docs/library
	Scripts/book.py html

# A Debian package and a tarball, both with the Swift runtime inside, in .package/.
package:
	@Scripts/setup.sh build package
	packaging/build.sh

# Installs both into a bare Debian and serves a guest there; as root.
package-test: package
	@Scripts/setup.sh package-test
	Scripts/package-test.sh

clean:
	rm -rf .build .build-fuzz .fuzz .build-package .package .guest bench-report conform-report .docs
