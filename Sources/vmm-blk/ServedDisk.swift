/// A disk that a server serves on a socket.
internal import OperatorWords
internal import Sockets
internal import VhostUser
internal import VirtioBlkDevice
internal import VirtioCore

/// Exists once its image is open and its socket is bound.
final class ServedDisk {
  /// The options that it was made from, with the limits of the list that was read last.
  var options: DeviceOptions
  let device: BlockDevice
  let socket: ServerSocket
  /// Where it is served, for messages.
  let place: String
  let server: BackendServer

  init(_ options: DeviceOptions, device: BlockDevice, socket: ServerSocket, place: String, server: BackendServer) {
    self.options = options
    self.device = device
    self.socket = socket
    self.place = place
    self.server = server
  }

  /// The place by which every process knows it: an absolute path, if it is a path.
  var name: String {
    if case .listening(let listener) = socket, listener.path != nil { Takeover.absolute(place) } else { place }
  }
}
