/// The entry point that libFuzzer calls, and the list of targets: one program has them all, so that it is linked once.
internal import Glibc

/// One run of a target. Whatever is wrong ends the process (`fail`), as a sanitizer does.
typealias Attack = (inout Shaper) -> Void

/// The targets, by their names in Scripts/fuzz.py and FUZZ_TARGET.
let attacks: [(name: String, attack: @Sendable (inout Shaper) -> Void)] = [
  ("split", attackSplitRing),
  ("packed", attackPackedRing),
  ("inflight", attackInflight),
  ("session", attackSession),
  ("takeover", attackTakeover),
  ("memory-file", attackMemoryFile),
  ("registers", attackRegisters),
  ("texts", attackTexts),
  ("descriptions", attackDescriptions),
  ("operator", attackOperator),
  ("files", attackFiles),
  ("qcow2", attackQcow2),
]

/// The target of this process.
nonisolated(unsafe) private let chosen: Attack = {
  // Without backtraces, whose output would mix with that of a finding.
  setenv("SWIFT_BACKTRACE", "enable=no", 0)
  let name = unsafe getenv("FUZZ_TARGET").map { unsafe String(cString: $0) } ?? ""
  guard let found = attacks.first(where: { $0.name == name }) else {
    fail("FUZZ_TARGET has to be one of " + attacks.map(\.name).joined(separator: ", "))
  }
  return found.attack
}()

@_cdecl("LLVMFuzzerTestOneInput")
public func fuzzOneInput(_ data: UnsafePointer<UInt8>?, _ size: Int) -> CInt {
  guard let data = unsafe data else { return 0 }
  var shaper = unsafe Shaper(data, size)
  unsafe chosen(&shaper)
  return 0
}

/// Ends the process with a finding: a promise does not hold.
func fail(_ sentence: String) -> Never {
  fatalError(sentence)
}

/// FUZZ_TELL is set: print what happens, to understand a finding.
private let tells = getenv("FUZZ_TELL") != nil

func tell(_ sentence: @autoclosure () -> String) {
  guard tells else { return }
  // Not buffered: the next step may end the process.
  let line = Array((sentence() + "\n").utf8)
  _ = write(STDERR_FILENO, line, line.count)
}

func check(_ holds: Bool, _ sentence: @autoclosure () -> String) {
  if !holds { fail(sentence()) }
}
