/// Sizes as people type them, and as they are printed.
import Testing
import VirtioCore

@Suite struct ByteSizeTests {
  @Test(
    arguments: [
      ("0", 0), ("4096", 4096), ("0x1000", 4096), ("0X10", 16), ("0x1k", 1024), ("0xb", 11), ("0x1b", 27), ("8s", 4096),
      ("512b", 512), ("512B", 512), ("4k", 4096), ("4K", 4096), ("4KiB", 4096), ("4kib", 4096), ("1M", 1 << 20),
      ("1m", 1 << 20),
      ("1MiB", 1 << 20), ("1G", 1 << 30), ("1GiB", 1 << 30), ("2T", 2 << 40), ("1P", 1 << 50), ("1E", 1 << 60),
      ("10GB", 10_000_000_000), ("4kB", 4000), ("4KB", 4000), ("1MB", 1_000_000), ("2.5M", 5 << 19), ("2.5 MiB", 5 << 19),
      ("1.5k", 1536), ("1.5kB", 1500), ("0.5G", 1 << 29), ("1 GiB", 1 << 30), ("18446744073709551615", .max),
      ("15.5E", 31 << 59),
    ] as [(String, UInt64)])
  func isTaken(text: String, bytes: UInt64) { #expect(ByteSize.parse(text) == bytes) }

  @Test(arguments: [
    "", "k", "0x", "0xg", "-1", "+1", " 1", "1x", "1kk", "1ki", "1  k", "1.k", ".5k", "1.3", "0.3k", "1.5", "1e3", "١k",
    "16E", "18446744073709551616", "17179869184G", "1.0000000000000001k", "1,5k", "0x1.8k", "GiB", "1GiBs",
  ])
  func isRefused(text: String) { #expect(ByteSize.parse(text) == nil) }

  @Test(
    arguments: [
      (0, "0 bytes"), (1, "1 byte"), (1023, "1023 bytes"), (1024, "1 KiB"), (1536, "1.5 KiB"), (5 << 19, "2.5 MiB"),
      (1 << 20, "1 MiB"), (1_500_001, "1.4 MiB"), (1 << 30, "1 GiB"), ((1 << 30) - 1, "1.0 GiB"), ((1 << 20) + 1, "1.0 MiB"),
      ((1 << 40) * 3 / 2, "1.5 TiB"), (1 << 50, "1 PiB"), (.max, "16.0 EiB"),
    ] as [(UInt64, String)])
  func isShown(bytes: UInt64, text: String) { #expect(ByteSize.describe(bytes) == text) }

  @Test(arguments: [0, 1, 512, 1024, 1536, 1 << 20, 3 << 30, 1 << 40, 1 << 50, .max] as [UInt64])
  func whatIsTypedIsTaken(bytes: UInt64) { #expect(ByteSize.parse(ByteSize.typed(bytes)) == bytes) }
}
