/// What an operator writes to start a process: lists of disks, and the values of options.
internal import FoundationEssentials
internal import VirtioCore

@testable internal import OperatorWords
@testable internal import VirtioBlkDevice

func attackDescriptions(_ shaper: inout Shaper) {
  switch shaper.choice(4) {
  case 1: attackLimits(&shaper)
  case 2: attackOptionWords(&shaper)
  default: attackList(&shaper)
  }
}

// MARK: Lists

private func attackList(_ shaper: inout Shaper) {
  let text = list(&shaper)
  tell(String(decoding: text, as: UTF8.self))
  let mayBeEmpty = shaper.flag()
  let list: ServeDiskList
  do {
    list = try ServeDiskList(Data(text), file: "list", defaults: Ordinary.options, mayBeEmpty: mayBeEmpty)
  } catch {
    check(!"\(error)".isEmpty && !"\(error)".utf8.contains(0), "a list is refused with a message that cannot be shown")
    return
  }
  check(mayBeEmpty || !list.disks.isEmpty, "an empty list was accepted")
  check(JSONKeys.double(in: Data(text)) == nil, "a list with a duplicate key was accepted")
  check(Set(list.disks.map(\.socketPath)).count == list.disks.count, "two disks have one socket")
  for disk in list.disks {
    let options = disk.options
    guard let path = options.blkFile else { fail("a disk has no image") }
    check(!path.utf8.contains(0) && !disk.socketPath.utf8.contains(0), "a path ends before its end")
    check((options.serial ?? "").utf8.count <= BlockDeviceOptions.serialSize, "a serial is too long")
    check(options.tuning.waiting == nil || options.tuning.pollUs == nil, "two ways to wait were accepted")
  }
}

/// The options of an empty command line. Parsing it would take most of a run.
private enum Ordinary {
  static let options = make { try DeviceOptions.parse([]) }
}

/// An array of objects, or nearly one.
private func list(_ shaper: inout Shaper) -> [UInt8] {
  var bytes = Array("[".utf8)
  for number in 0..<shaper.pick([1, 2, 0, 3]) {
    if number > 0 { bytes += Array(",".utf8) }
    bytes += entry(&shaper, number)
  }
  bytes += Array("]".utf8)
  for _ in 0..<shaper.choice(3) where shaper.mistake() && !bytes.isEmpty {
    let place = Int(shaper.word16()) % bytes.count
    switch shaper.choice(3) {
    case 0: bytes[place] = shaper.byte()
    case 1: bytes.insert(contentsOf: shaper.bytes(upTo: 16), at: place)
    default: bytes.removeSubrange(place..<min(bytes.count, place + shaper.choice(32)))
    }
  }
  return bytes
}

private func entry(_ shaper: inout Shaper, _ number: Int) -> [UInt8] {
  if shaper.mistake() { return value(&shaper) }
  var text = "{\"blk-file\":\"/\(number)\",\"socket-path\":\"/\(number).sock\""
  for _ in 0..<shaper.choice(6) {
    let words = ServeDisk.Word.allCases
    let word = words[shaper.choice(words.count)]
    text += ",\"" + (shaper.mistake() ? spelled(word.rawValue, &shaper) : word.rawValue) + "\":"
    let good = ordinary(word)
    guard good.isEmpty || shaper.mistake() else {
      text += shaper.pick(good)
      continue
    }
    text += String(decoding: value(&shaper), as: UTF8.self)
  }
  return Array((text + "}").utf8)
}

/// Another spelling of the same key, or a similar key.
private func spelled(_ word: String, _ shaper: inout Shaper) -> String {
  guard shaper.flag() else { return String(word.dropLast(shaper.choice(4))) }
  return word.replacing("-", with: "\\u002d")
}

/// Values in JSON that a key may have.
private func ordinary(_ word: ServeDisk.Word) -> [String] {
  switch word {
  case .blkFile: ["\"/dev/null\"", "\"/dev/../dev/null\"", "\"/a\""]
  case .image:
    [
      "\"file:/dev/null\"", "\"nbd://localhost:10809/a%20b\"", "\"nbd+unix:///?socket=/a.nbd\"", "\"qcow2:/a\"",
      "\"nbds://a/\"", "\"rbd:pool/image@a?conf=/a&id=b\"", "\"rbd:a/b%0/c\"",
    ]
  case .socketPath: ["\"/a.sock\"", "\"/0.sock\""]
  case .format: ["\"auto\"", "\"raw\""]
  case .readOnly, .noLock, .breakLock, .serverKeepsWrites: ["true", "false", "null"]
  case .numQueues, .threads: ["1", "4", "256", "257", "-1", "1e2"]
  case .logicalBlockSize: ["512", "\"4k\"", "4096", "\"8s\""]
  case .queueSizeMax: ["4", "256", "32768"]
  case .serial: ["\"a serial\"", "\"12345678901234567890\"", "\"\\u00e4\\ud83d\\ude00\""]
  case .engine: EngineKind.allCases.map { "\"\($0.rawValue)\"" } + ["\"io_uring\""]
  case .direct: ["\"auto\"", "\"on\"", "\"off\"", "\"1\""]
  case .pinCPUs: ["\"0\"", "\"0-3,7\"", "\"0-1023\""]
  case .waiting: ["\"sleep\"", "\"poll:50\"", "\"adaptive:50\"", "\"busy\""]
  case .pollUs: ["0", "50"]
  case .zoned:
    [
      "\"host-managed\"", "\"host-managed,zone-size=1M,conventional=2,max-open=14\"", "\"host-managed,zone-size=3k\"",
      "\"host-managed,file=/a.zones,adopt,offline=3,offline=4\"", "\"host-aware\"",
    ]
  case .reconnectTimeout: ["0", "30", "86400", "86401"]
  case .notify: ["\"batch\"", "\"each\"", "\"coalesce:4:100\""]
  case .uring: ["\"plain\"", "\"sqpoll=1,wait=4\"", "\"no-file,no-ring,epoll\""]
  case .onError: ErrorPolicy.allCases.map { "\"\($0.rawValue)\"" }
  case .inject: ["\"write:eio:rate=0.01\"", "[\"read:eio\",\"flush:delay=5\"]", "[]"]
  case .features, .noFeature: ["\"event_idx,discard\"", "\"0x20000000\"", "\"default,ring_packed\"", "\"all\""]
  case .config: ["\"seg_max=62\"", "\"seg_max=1,size_max=64k\"", "\"seg_max=0\""]
  case .latencies: ["\"on\"", "\"off\""]
  case .limit: ["\"iops=2000,write-bytes=50M/100M\"", "\"none\""]
  }
}

/// A value of any kind.
private func value(_ shaper: inout Shaper) -> [UInt8] {
  let words = [
    "1", "\"\"", "null", "[]", "{}", "true", "-1", "1e999", "18446744073709551616", "\"\\u0000\"", "\"\\ud800\"", "[[[[[[[[",
    "{\"a\":{\"a\":1,\"a\":2}}", "0.5", "\"-\"", "\",\"", "\"=\"", "\":\"", "9223372036854775807",
  ]
  return shaper.mistake() ? shaper.bytes(upTo: 32) : Array(shaper.pick(words).utf8)
}

// MARK: Words

/// Accepted limits can be printed and parsed again, and a disk that has them lets some requests pass.
private func attackLimits(_ shaper: inout Shaper) {
  let text = words(
    &shaper,
    [
      "iops=", "read-iops=", "write-iops=", "bytes=", "read-bytes=", "write-bytes=", "none", ",", "/", "1", "2000", "50M", "0",
      "18446744073709551615", "1e3", "=",
    ])
  tell(text)
  guard let change = LimitChange(argument: text) else { return }
  let limits = change.limits
  guard let again = LimitChange(argument: limits.words) else { fail("\(limits.words) cannot be parsed again") }
  check(again.limits == limits, "\(limits.words) is different when it is parsed again")
  let throttle = DiskThrottle(limits, now: shaper.oddNumber())
  var now: UInt64 = 0
  for _ in 0..<shaper.choice(8) {
    now = max(now, shaper.oddNumber())
    let sizes = (0...shaper.choice(4)).map { _ in shaper.oddNumber() }
    let booking = sizes.withUnsafeBufferPointer { unsafe throttle.book(shaper.flag() ? .read : .write, sizes: $0, now: now) }
    check((1...sizes.count).contains(booking.count), "\(booking.count) of \(sizes.count) requests were booked")
    if shaper.choice(4) == 1 { throttle.charge(.write, bytes: shaper.oddNumber(), now: now) }
  }
}

private func attackOptionWords(_ shaper: inout Shaper) {
  let kind = shaper.choice(8)
  let text = words(
    &shaper,
    [
      "sleep", "poll:", "adaptive:", "busy", "50", ":", "coalesce:", "4", "batch", "each", ",", "=", "sqpoll", "deferred",
      "wait=",
      "-", "0-3", "1023", "default", "all", "0x", "RING_PACKED", "VIRTIO_F_", "event_idx", "mq", "seg_max", "size_max",
      "max_discard_sectors", "64k", "9223372036854775807", "auto",
    ])
  tell(text)
  switch kind {
  case 0:
    guard let waiting = Waiting(argument: text) else { return }
    check(
      Waiting(argument: waiting.defaultValueDescription) == waiting, "\(text) is another way to wait when it is parsed again")
  case 1:
    guard let when = Notification(argument: text) else { return }
    check(Notification(argument: when.defaultValueDescription) == when, "\(text) is another moment when it is parsed again")
  case 2: _ = UringSetup(argument: text)
  case 3:
    guard let list = ProcessorList(argument: text) else { return }
    check(list.processors.allSatisfy { (0..<1024).contains($0) }, "an impossible CPU number")
  case 4:
    guard let list = try? FeatureList(text) else { return }
    check((try? FeatureList(list.text)) == list, "\(text) are other features when they are parsed again")
    let words = FeatureWords(only: list, without: [list])
    if (try? words.validate()) != nil { _ = words.protocolFeatures }
  case 5: _ = SharedWorkersChoice(argument: text)
  case 6:
    guard let fields = ConfigurationWords(argument: text) else { return }
    check(
      ConfigurationWords(argument: fields.defaultValueDescription) == fields,
      "\(text) are other fields when they are parsed again")
  default:
    // The suggestion for a mistyped word exists.
    let known = ServeDisk.Word.allCases.map(\.rawValue)
    guard let close = CloseWord.find(to: text, among: known) else { return }
    check(known.contains(close), "\(close) is not a known word")
  }
}

/// Meaningful words, with arbitrary bytes between them.
func words(_ shaper: inout Shaper, _ words: [String]) -> String {
  var bytes: [UInt8] = []
  var pieces = 0
  while !shaper.isOver, pieces < 64 {
    pieces += 1
    if shaper.mistake() { bytes += shaper.bytes(upTo: 32) } else { bytes += shaper.pick(words).utf8 }
  }
  return String(decoding: bytes, as: UTF8.self)
}
