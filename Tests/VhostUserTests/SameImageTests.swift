/// Two disks of one server with the same image.
import Foundation
import TestSupport
import Testing

@Suite struct SameImageTests {
  /// The disk that has the image is named as its operator knows it: no other process has to be stopped.
  @Test(arguments: ["file:", "qcow2:"]) func theDiskThatHasItIsNamed(scheme: String) throws {
    try withDirectory { directory in
      let image = directory + "/disk"
      if scheme == "file:" {
        try Data(count: 1 << 20).write(to: URL(fileURLWithPath: image))
      } else {
        #expect(try Program(["image", "create", image, "--size", "1M"]).finish().status == 0)
      }
      let server = try Program([
        "serve", "--image", scheme + image, "--socket-path", directory + "/a.sock", "--control", directory + "/control",
      ])
      try #require(server.firstLine().hasPrefix("Serving "))
      let added = try Program([
        "ctl", "--control", directory + "/control", "add", "image=\(scheme)\(image)", "socket-path=\(directory)/b.sock",
      ]).finish()
      #expect(added.status != 0)
      #expect(added.errors.contains("in use by another disk of this process (\(directory)/a.sock)"), "\(added.errors)")
      #expect(added.errors.contains("give each disk an image of its own"), "\(added.errors)")
      server.process.terminate()
      #expect(server.finish().status == 0)
    }
  }
}
