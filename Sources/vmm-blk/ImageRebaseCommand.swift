/// `vmm-blk image rebase`: gives an overlay another backing file.
internal import ArgumentParser
internal import OperatorWords
internal import SystemPackage
internal import VirtioBlkDevice

struct ImageRebaseCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "rebase",
    abstract: "Give an overlay another backing file, or none.",
    usage: """
      vmm-blk image rebase <uri> -b <path> -F raw|qcow2 [<options>]
      vmm-blk image rebase <uri> -b '' [<options>]
      """,
    discussion: """
        vmm-blk image rebase -b new.raw -F raw 'qcow2:top.qcow2?backing=raw:old.raw'
        vmm-blk image rebase -b '' 'qcow2:top.qcow2?backing=raw:old.raw'

      The contents of the disk stay the same: where the new backing file differs from the old one, the old contents are \
      copied into the overlay; with -b '' all of them are. Then the name is changed. With -u only the name is changed, for a \
      backing file that was moved or renamed. The name is recorded as it is given; if it is relative, it is relative to the \
      folder of the image. Nobody may have the image open. Images below the new backing file are opened only if they are in \
      the URI's backing-folder.
      """)

  @Argument(help: .init("The overlay, as in qcow2:PATH?backing=FORMAT:PATH; with -u a path.", valueName: "uri")) var image:
    String
  @Option(
    name: [.customShort("b"), .customLong("backing")], help: .init("The new backing file; '' for none.", valueName: "path"))
  var backing: String
  @Option(name: [.customShort("F"), .customLong("backing-format")], help: "The format of the new backing file.")
  var backingFormat: BackingFormat?
  @Flag(name: [.customShort("u"), .customLong("unsafe")], help: "Change the name only.") var isUnsafe = false
  @Flag(name: [.customShort("p"), .customLong("progress")], help: "Show the progress, on a terminal.") var showsProgress =
    false

  func validate() throws {
    guard backing.isEmpty || backingFormat != nil else { throw ImageCommandError.noBackingFormat }
    guard !backing.isEmpty || backingFormat == nil else {
      throw ValidationError("--backing-format is for a backing file: leave it out with -b ''.")
    }
  }

  func run() throws {
    let location: Qcow2Location
    do throws(Qcow2Failure) { location = try ImageCommandError.location(image) } catch {
      throw ImageCommandError.usage("\(error)")
    }
    let format = backingFormat.map { $0 == .raw ? ImageFormat.raw : .qcow2 }
    let progress = ImageProgress(isWanted: showsProgress)
    do throws(ImageToolFailure) {
      if isUnsafe {
        try Qcow2Editor(path: location.path).rename(backing: backing.isEmpty ? nil : backing, format: format)
      } else {
        var new: Qcow2Rebase.Backing? = nil
        if let format {
          let place =
            FilePath(backing).isAbsolute
            ? backing : FilePath(location.path).removingLastComponent().appending(backing).string
          new = Qcow2Rebase.Backing(name: backing, path: place, format: format)
        }
        try Qcow2Rebase.run(location, to: new) { progress.show($0, of: $1) }
      }
    } catch { throw ImageCommandError.tool(error) }
  }
}
