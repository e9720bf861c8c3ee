/// `vmm-blk image commit`: writes an overlay's contents into its backing file.
internal import ArgumentParser
internal import OperatorWords
internal import VirtioBlkDevice

struct ImageCommitCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "commit",
    abstract: "Write the contents of an overlay into its backing file, and empty the overlay.",
    discussion: """
        vmm-blk image commit 'qcow2:overlay.qcow2?backing=raw:golden.raw'

      The backing file is written to, so it has to be named; images below it are opened only as far as the URI allows. \
      Nobody may have either file open. A backing file that is smaller than the overlay grows to its size. If the command is \
      interrupted, the contents of the overlay's disk are unchanged: the overlay is emptied only when everything is stable \
      in the backing file. Other overlays over the same backing file are unusable afterwards.
      """)

  @Argument(help: .init("The overlay, as in qcow2:PATH?backing=FORMAT:PATH.", valueName: "uri")) var image: String
  @Flag(name: [.customShort("d"), .customLong("keep")], help: "Do not empty the overlay.") var keeps = false
  @Flag(name: [.customShort("p"), .customLong("progress")], help: "Show the progress, on a terminal.") var showsProgress =
    false

  func run() throws {
    let location: Qcow2Location
    do throws(Qcow2Failure) { location = try ImageCommandError.location(image) } catch {
      throw ImageCommandError.usage("\(error)")
    }
    let progress = ImageProgress(isWanted: showsProgress)
    do throws(ImageToolFailure) {
      try Qcow2Commit.run(location, keepsOverlay: keeps) { progress.show($0, of: $1) }
    } catch { throw ImageCommandError.tool(error) }
    print("Image committed.")
  }
}
