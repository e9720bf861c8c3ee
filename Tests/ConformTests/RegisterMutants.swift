enum RegisterMutants { static let all: [Mutant] = [] }
enum WireMutants { static let all: [Mutant] = [] }
