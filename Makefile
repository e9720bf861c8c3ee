# What people and CI call. Everything that is missing on a bare Debian 12 with Swift is installed on the way.

VMM_BLK := .build/release/vmm-blk

.PHONY: all build release demo guest test lint test-fast test-system test-fuzz fuzz bench bench-peers conform-peers profile micro package package-test docs clean

all: release

build:
	@Scripts/setup.sh build
	swift build

release:
	@Scripts/setup.sh build
	swift build -c release

# A memory file, the device on it, a synthetic guest in another process, and a picture of their rings.
demo: release
	@Scripts/demo.sh

# A real Linux on our socket: user-mode Linux, a kernel that is a process; in QEMU with 'make guest GUEST=qemu'.
GUEST := uml
guest: release
	@Scripts/guest/demo.sh $(GUEST)

# The house's style (.swift-format), checked; 'swift format format -i -r -p Sources Tests Benchmarks Fuzz Package.swift' mends.
lint:
	swift format lint -r -p --strict Sources Tests Benchmarks Fuzz Package.swift

# Everything that needs no QEMU, the quickest first.
test-fast:
	@Scripts/setup.sh build test
	swift build --build-tests
	swift test --skip-build

# Real guests, and the proofs of what a request costs.
test-system: release
	@Scripts/setup.sh build guest qemu counts
	Scripts/counts.py
	Scripts/many.py --disks 100 --seconds 2 --check
	Scripts/silent-medium.py
	Scripts/guest/test.sh

# A minute of attacks by machines, with the same random numbers each time; building them takes minutes, so it is by itself.
test-fuzz:
	@Scripts/setup.sh build
	Scripts/fuzz.py --minutes 1 --seed 1

test: lint test-fast test-system

# The figures of Docs/reliability.md for as long as you like; goes on where it stopped.
MINUTES := 10
soak: release
	@Scripts/setup.sh build guest qemu
	Scripts/soak.py $(MINUTES)

# The same for as long as you like: every parser, by libFuzzer with AddressSanitizer; goes on where it stopped.
fuzz:
	@Scripts/setup.sh build
	Scripts/fuzz.py --minutes $(MINUTES)

bench: release
	@Scripts/setup.sh build bench
	Scripts/bench/bench.sh

bench-peers: release
	@Scripts/setup.sh build bench
	Scripts/bench/peers.sh

# What other back-ends make of the specification: Docs/conformance.md says what is in the reports.
conform-peers: release
	@Scripts/setup.sh build bench
	Scripts/conform-peers.sh

# What the processor does while it is busy: where each path's limit is.
profile: release
	@Scripts/setup.sh build bench
	Scripts/bench/profile.py

# The pieces of a request alone: nanoseconds, and instructions by callgrind.
micro: release
	@Scripts/setup.sh build counts
	Scripts/instructions.py | .build/release/ring-cost --instructions /dev/stdin

# The book, the other documents and the libraries' symbols as HTML that reads offline, in .docs/. Every output is made anew first.
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
