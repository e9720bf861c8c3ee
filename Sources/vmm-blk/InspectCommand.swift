/// `vmm-blk inspect`: the rings of a memory file, drawn for people or as JSON for programs. It opens the file for reading
/// only.
internal import ArgumentParser
internal import Foundation
internal import MemoryFile
internal import OperatorWords
internal import RingInspector
internal import VirtioCore

struct InspectCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "inspect", abstract: "Draw the rings of a memory file.",
    usage: """
      vmm-blk inspect [--json] <file>
      vmm-blk inspect --raw --queue <ring> [<options>] <file>
      """,
    discussion: """
      For each queue: sizes, addresses, indices, flags, the chains that are available or in flight, the last ones that were \
      used, and what is wrong with a broken one. With --raw the file is plain guest memory, and --queue gives the positions \
      of the rings.
      """)

  @Argument(help: .init("The memory file.", valueName: "file"))
  var file: String

  @Flag(help: "The file is plain guest memory without a header; needs --queue.")
  var raw = false

  @Option(help: .init("The ring of a queue in a raw file; once per queue.", valueName: "size=N,desc=A,avail=A,used=A"))
  var queue: [QueueSpecification] = []

  @Option(help: .init("The features that the driver is assumed to have accepted, with --raw.", valueName: "bits"))
  var features: ByteCount?

  @Option(help: .init("Guest-physical address of the first byte of a raw file.", valueName: "address"))
  var memoryBase: ByteCount?

  @Flag(help: "Print JSON.")
  var json = false

  func validate() throws {
    guard raw || queue.isEmpty && features == nil && memoryBase == nil else {
      throw ValidationError("--queue, --features and --memory-base are for a file without header: add --raw")
    }
    guard !raw || !queue.isEmpty else {
      throw ValidationError("a raw file does not say where its rings are: add --queue size=N,desc=A,avail=A,used=A")
    }
  }

  func run() throws {
    if raw {
      let memory = try GuestBytes(rawFile: file, base: GuestAddress(memoryBase?.bytes ?? 0))
      let features = FeatureSet(rawValue: features?.bytes ?? FeatureSet.version1.rawValue)
      let queues = queue.enumerated().map { index, specification in
        QueuePicture(queue: index, configuration: specification.configuration, features: features, memory: memory)
      }
      if json { return try print(FileDescription(queues: queues)) }
      print(queues.flatMap { QueueDrawing.draw($0) })
    } else {
      let picture = MemoryFilePicture(try MemoryFileSnapshot(path: file))
      if json { return try print(FileDescription(picture)) }
      print(picture.draw())
    }
  }

  private func print(_ description: FileDescription) throws {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
    Swift.print(String(decoding: try encoder.encode(description), as: UTF8.self))
  }

  /// The name of a file in these lines may contain any characters.
  private func print(_ lines: [String]) { for line in lines { Swift.print(printable(line)) } }
}
