/// `vmm-blk guest verify`: a random workload and a model of what the disk must hold.
public import ArgumentParser
internal import Foundation
public import GuestDriver
internal import OperatorWords
internal import VirtioCore

extension VerifyOptions.Cuts: ExpressibleByArgument {}
extension Reconnection.Base: ExpressibleByArgument {}
extension RingFormat: ExpressibleByArgument {}

struct GuestVerify: GuestVerb {
  static let configuration = CommandConfiguration(
    commandName: "verify", abstract: "Read and write at random, and check every byte. Destroys the contents of the disk.",
    usage: GuestTarget.usage("verify [<options>]"),
    discussion: """
      Requests of all kinds that the disk offers, in any framing, on all queues; what is read is compared with what was \
      written, and at the end everything is read once more. The same --seed makes the same requests.

      With --reconnect the back-end may exit, be killed and be started again: the guest reconnects, with the same memory, \
      rings and in-flight records, and continues. A request that is answered twice, or never, is a failure.
      """)

  @ParentCommand var guest: Guest
  @OptionGroup var target: GuestTarget

  @Option(help: .init("Seed of the run; random by default.", valueName: "n")) var seed: UInt64?
  @Option(help: .init("Stop after this many bytes (default: 64M).", valueName: "bytes")) var bytes: ByteCount?
  @Option(help: .init("Stop after this many seconds.", valueName: "n")) var seconds: Double?
  @Option(help: .init("The part of the disk to use: where it begins.", valueName: "bytes")) var offset = ByteCount(0)
  @Option(help: .init("The part of the disk to use: its size (default: up to 1G).", valueName: "bytes")) var length: ByteCount?
  @Option(help: .init("The largest request.", valueName: "bytes")) var largest = ByteCount(128 << 10)
  @Option(help: "How requests are split into descriptors; QEMU's own back-ends support 'random' but not 'all'.")
  var cuts = VerifyOptions.Cuts.all
  @Flag(help: "Poll for answers instead of waiting for calls.") var poll = false
  @Flag(help: "Print JSON.") var json = false
  @Flag(help: "Reconnect when the back-end goes away, and continue.") var reconnect = false
  @Option(help: .init("How long to wait for a back-end to return.", valueName: "seconds")) var reconnectTimeout: Double = 120
  @Option(help: "Where rings resume after a reconnection: at 'used', like QEMU, or at 'available', like Cloud Hypervisor.")
  var base = Reconnection.Base.used
  @Flag(help: "Keep no in-flight records of the back-end.") var noInflight = false
  @Flag(help: "Use no indirect descriptors.") var noIndirect = false
  @Flag(help: "Use no event indices.") var noEventIndex = false
  @Option(help: .init("Print a line after every N answers.", valueName: "n")) var reportEvery: Int?

  @Option(help: .init("Print a line whenever no answer has come for longer than this.", valueName: "ms"))
  var reportPauses: Double?

  func validate() throws {
    if let reportPauses, !(reportPauses > 0 && reportPauses < 1e7) {
      throw ValidationError("--report-pauses \(reportPauses) is not a valid time.")
    }
    guard bytes == nil || seconds == nil else { throw ValidationError("Give --bytes or --seconds, not both.") }
    if let seconds, !(seconds > 0 && seconds < 1e7) { throw ValidationError("--seconds \(seconds) is not a valid time.") }
    guard reconnectTimeout > 0, reconnectTimeout < 1e7 else {
      throw ValidationError("--reconnect-timeout \(reconnectTimeout) is not a valid time.")
    }
    if let reportEvery, reportEvery < 1 { throw ValidationError("--report-every \(reportEvery) is less than 1.") }
    guard (512...(4 << 20)).contains(largest.bytes) else {
      throw ValidationError("--largest \(largest.bytes) is not from 512 to 4M.")
    }
  }

  func run() throws {
    let seed = seed ?? UInt64.random(in: 0..<1 << 32)
    let reconnection =
      reconnect
      ? Reconnection(limit: .seconds(reconnectTimeout), base: base, keepsRecords: !noInflight) : nil
    var avoided: FeatureSet = []
    if noIndirect { avoided.insert(.indirectDescriptors) }
    if noEventIndex { avoided.insert(.eventIndex) }
    try withDisk(reconnection: reconnection, avoiding: avoided) { client in
      if poll { client.waiting = .polling }
      let limit: VerifyOptions.Limit =
        seconds.map { .duration(.seconds($0)) } ?? .bytes(bytes?.bytes ?? 64 << 20)
      var options = VerifyOptions(seed: seed, limit: limit, largest: Int(largest.bytes), cuts: cuts)
      if length != nil || offset.bytes > 0 {
        guard offset.bytes < client.capacity else {
          throw DriverError.badRequest("the offset \(offset.bytes) is past the disk's end at \(client.capacity)")
        }
        let room = client.capacity - offset.bytes
        options.range = offset.bytes..<offset.bytes + min(length?.bytes ?? min(room, 1 << 30), room)
      }
      // Printed at once, so that even a run that hangs can be repeated.
      if !json { print("seed \(seed)") }
      var verifier = try Verifier(client, options)
      var last = ContinuousClock.now
      let longest = reportPauses.map { Duration.seconds($0 / 1000) }
      verifier.whenAnswered = { [reportEvery] answered in
        if let longest {
          let now = ContinuousClock.now
          if now - last > longest { People.output.write("no answer for \(Int((now - last) / .microseconds(1))) us") }
          last = now
        }
        if let reportEvery, answered % reportEvery == 0 { People.output.write("answered \(answered)") }
      }
      var progress = ProgressLine("verified")
      defer { progress.finish() }
      let report = try verifier.run { now in progress.show(now.bytes + now.bytesReadBack, ", \(now.requestCount) requests") }
      progress.finish()
      guard report.bytesRead + report.bytesWritten + report.bytesReadBack > 0 else {
        if json { print(try Summary(seed, report, client).json) }
        throw NothingVerified(seconds: report.elapsed / .seconds(1))
      }
      print(json ? try Summary(seed, report, client).json : Summary(seed, report, client).text)
    }
  }

  /// A run that ended before anything was verified.
  private struct NothingVerified: ErrorWithStatus, CustomStringConvertible {
    let seconds: Double
    var status: ExitStatus { .failure }
    var description: String {
      "nothing was verified, because no byte was read or written in \((seconds * 10).rounded() / 10) s: "
        + "give it more with --seconds or --bytes"
    }
  }

  /// A run that found nothing wrong.
  private struct Summary: Encodable {
    var seed: UInt64
    var seconds: Double
    var requests: [String: Int]
    var bytesRead: UInt64
    var bytesWritten: UInt64
    var bytesReadBack: UInt64
    var queues: Int
    var reconnections: Int?
    var kicks: Int
    var calls: Int

    init(_ seed: UInt64, _ report: VerifyProgress, _ client: BlockClient) {
      self.seed = seed
      seconds = report.elapsed / .seconds(1)
      requests = Dictionary(uniqueKeysWithValues: report.requests.map { ("\($0.key)", $0.value) })
      bytesRead = report.bytesRead
      bytesWritten = report.bytesWritten
      bytesReadBack = report.bytesReadBack
      queues = client.queues.count
      let transport = client.session.transport as? VhostUserTransport
      reconnections = transport?.reconnection == nil ? nil : transport?.reconnections
      kicks = report.kicks
      calls = report.calls
    }

    var json: String {
      get throws {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
        return String(decoding: try encoder.encode(self), as: UTF8.self)
      }
    }

    var text: String {
      let kinds = requests.sorted { $0.value > $1.value }.map { "\($0.value) \($0.key)" }.joined(separator: ", ")
      let again = reconnections.map { "; the back-end went away and came back \($0) times" } ?? ""
      let tenths = (seconds * 10).rounded() / 10
      return """
        verified: \(ByteSize.describe(bytesWritten)) written, \(ByteSize.describe(bytesRead)) read, \
        \(ByteSize.describe(bytesReadBack)) read back at the end; every byte is right
        \(kinds) on \(queues) queue\(queues == 1 ? "" : "s") in \(tenths) s; \(kicks) kicks, \(calls) calls\(again)
        """
    }
  }
}
