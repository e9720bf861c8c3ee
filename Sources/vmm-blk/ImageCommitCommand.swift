/// `vmm-blk image commit`: what an overlay has goes into its backing file.
internal import ArgumentParser
internal import OperatorWords
internal import VirtioBlkDevice

struct ImageCommitCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "commit",
    abstract: "Write what an overlay has into its backing file, and empty the overlay.",
    discussion: """
      vmm-blk image commit 'qcow2:overlay.qcow2?backing=raw:golden.raw'

      The backing file is written to, so it has to be named; files under it are opened only as far as the URI says. Nobody may have either \
      file open, and a backing file that is smaller than the overlay becomes as large. A command that is ended leaves the overlay the disk \
      that it was: it is emptied once everything is stable in the backing file. Other overlays over the same backing file are not usable \
      afterwards.
      """)

  @Argument(help: .init("The overlay, as in qcow2:PATH?backing=FORMAT:PATH.", valueName: "uri")) var image: String
  @Flag(name: [.customShort("d"), .customLong("keep")], help: "Do not empty the overlay.") var keeps = false
  @Flag(name: [.customShort("p"), .customLong("progress")], help: "Show how far it is, on a terminal.") var showsProgress =
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
