/// `vmm-blk bench`: measures a device on any transport, with fio's names for options and results.
internal import ArgumentParser

struct BenchCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "bench",
    abstract: "Measure a device: rate, latency and cost.",
    usage: """
      vmm-blk bench --socket-path <path> [<options>]
      vmm-blk bench --memory <path> [<options>]
      vmm-blk bench --blk-file <path> [--paths] [<options>]
      vmm-blk bench --ceiling [<options>]
      vmm-blk bench compare <first> <second>
      """,
    discussion: """
        vmm-blk bench --socket-path /tmp/disk.sock --rw=randread --bs=4k --iodepth=32
        vmm-blk bench --blk-file disk.raw --output-format=json --output a.json
        vmm-blk bench compare a.json b.json
        vmm-blk bench --paths --blk-file disk.raw --output bench-report

      Writing workloads overwrite the contents of the disk.
      """,
    subcommands: [BenchRunCommand.self, BenchCompareCommand.self],
    defaultSubcommand: BenchRunCommand.self)
}
