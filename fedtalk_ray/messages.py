"""Everything that crosses between clients, server and driver, in one place.

A phase's shared vector, float32, goes from the parameter server to the slots: parameters, or in phases of statistics
(`recipe`) what they are so far. What comes back is what clients would add to it, in every phase by the same messages:

`aggregation: secure`  the five messages of the protocol's stages (`Advertisement` to `Unmasking`), as canonical signed
                       bytes (`privacy.wire`). `TO_SERVER` and `FIELDS` list all that they hold. Of a client's update
                       only `MaskedInput` is sent, uniform to the server.
`aggregation: plain`   a `PlainUpdate`, in the clear, to the server. Scores travel in the `ClientReport`s of a
                       `FitReport` to the driver, sample counts also show in `total_weight`.

Raw frames, sound, latents and identity adapters have no message and never leave the client's side.
"""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class ClientReport:
    """What one client tells in the clear under plain aggregation, for logs and plots. No secure mode may send it."""

    client: str
    samples: int
    """Training frames n_k."""
    weight: float
    """Unnormalised aggregation weight."""
    score: float | None
    id_sim: float | None
    temp_stab: float | None
    losses: dict[str, float]


@dataclass(frozen=True)
class FitReport:
    """Under plain aggregation, of a chunk of clients: whose updates are in the sum, and their reports.

    Reports are left out where the server is to add noise.
    """

    clients: tuple[str, ...]
    reports: tuple[ClientReport, ...] = ()
    refused: dict[str, int] = field(default_factory=dict)
    """code (`privacy.protocol.Code`) -> how many clients have no update for that reason."""


@dataclass(frozen=True)
class PlainUpdate:
    """One slot's chunk of clients, summed: sum_k w_k * Delta_k, and sum_k w_k beside it.

    weighted_sum: float32 [D]. total_weight: positive. The server needs no more than this.
    """

    round: int
    weighted_sum: np.ndarray
    total_weight: float

    def nbytes(self) -> int:
        """Size of the vector on the wire."""
        return int(self.weighted_sum.nbytes)


@dataclass(frozen=True)
class HeldOutFigure:
    """A loss or an agreement on held-out clips: the sum over a chunk of people, and their number."""

    total: float
    people: int


@dataclass(frozen=True)
class Answers:
    """Of a slot's clients, in one step of the secure protocol: who answered, and why the others did not."""

    clients: tuple[str, ...]
    refused: dict[str, int] = field(default_factory=dict)
    """code (`privacy.protocol.Code`) -> how many clients."""


@dataclass(frozen=True)
class Collected:
    """From the server, of one stage: the next frame for each client still there, or why the round is over."""

    frames: dict[str, bytes]
    answered: int
    rejected: dict[str, int]
    """code -> messages refused."""
    aborted: str | None = None


# The secure protocol. Client to server, one message for each stage:


@dataclass(frozen=True)
class Advertisement:
    """Stage 0: this round's two X25519 public keys, 32 bytes each."""

    client: str
    encryption_key: bytes
    masking_key: bytes


@dataclass(frozen=True)
class SealedShare:
    """For one holder: its Shamir share of a secret, encrypted to it, and a SHA-256 commitment to the share.

    With the commitment the server knows a share that was altered on its way back from one that was not.
    """

    holder: str
    ciphertext: bytes
    commitment: bytes


@dataclass(frozen=True)
class SealedShares:
    """Stage 1: shares of the masking secret key, for the holders that this client drew and for itself."""

    client: str
    shares: tuple[SealedShare, ...]


@dataclass(frozen=True)
class MaskedInput:
    """Stage 2: y = x + PRG(b) +/- sum PRG(s_uv) mod 2^32, uint32 [L].

    And of the self-mask seed b a commitment, and shares for those holders with whom this client masks, and for itself.
    """

    client: str
    vector: np.ndarray
    seed_commitment: bytes
    shares: tuple[SealedShare, ...]


@dataclass(frozen=True)
class Consistency:
    """Stage 3: H(session, U3), the set of survivors that this client was told, and whose shares are of no use to it: of
    the survivors those of the seed, of the others those of the key. Each by its place among those who advertised
    (`protocol.points`), in rising order, so that no list is long."""

    client: str
    survivors: bytes
    complaints: tuple[int, ...]


@dataclass(frozen=True)
class Share:
    """A 33-byte Shamir share of one owner's secret."""

    owner: str
    value: bytes


@dataclass(frozen=True)
class OpenedShare:
    """The share of its seed that a client dealt to a holder who complained."""

    holder: str
    value: bytes


@dataclass(frozen=True)
class Unmasking:
    """Stage 4: self-mask shares of survivors, masking-key shares of clients that dropped out; never both of one. And of
    its own seed the shares that others found useless."""

    client: str
    self_mask_shares: tuple[Share, ...]
    masking_key_shares: tuple[Share, ...]
    opened: tuple[OpenedShare, ...]


# All that may cross from a client to the server under `aggregation: secure`, in one place.

TO_SERVER: dict[str, type] = {
    "advertise": Advertisement,
    "share": SealedShares,
    "mask": MaskedInput,
    "confirm": Consistency,
    "unmask": Unmasking,
}
"""stage -> the one message that a client sends in it."""

FIELDS: dict[type, dict[str, tuple[int, ...]]] = {
    Advertisement: {"client": (), "encryption_key": (32,), "masking_key": (32,)},
    SealedShares: {"client": (), "shares": ()},
    # A share of 33 bytes with a tag of 16; a client sends its own share to nobody.
    SealedShare: {"holder": (), "ciphertext": (0, 49), "commitment": (32,)},
    MaskedInput: {"client": (), "vector": (), "seed_commitment": (32,), "shares": ()},
    Consistency: {"client": (), "survivors": (32,), "complaints": ()},
    Unmasking: {"client": (), "self_mask_shares": (), "masking_key_shares": (), "opened": ()},
    Share: {"owner": (), "value": (33,)},
    OpenedShare: {"holder": (), "value": (33,)},
}
"""Every field of these messages, and how many bytes it may hold. (): clients of the cohort by name or
place, the vector, or parts."""

# Of sites, clients on machines of their own, beside these (`sites`, `coordinator`):


@dataclass(frozen=True)
class EnrolmentRequest:
    """Asks the authority for membership: a name, an Ed25519 key, the invite's own public key with its last day and the
    authority's signature over these, and proofs that the sender has the secret halves of both keys (signatures of 64
    bytes)."""

    client: str
    key: bytes
    invite: bytes
    until: str
    grant: bytes
    code_proof: bytes
    key_proof: bytes


@dataclass(frozen=True)
class Reply:
    """A site's to one `Order`: the frame that the protocol's stage asks for, signed (empty in "train": it is ready); or
    why it takes no further part, one line of `Code` or of its policy, and never of what its clips are like."""

    refused: str
    frame: bytes


# Server to client:


@dataclass(frozen=True)
class Plan:
    """What a round is about. Client and server both hash it into the context that every signature covers.

    exchange: counts every attempt at a round and never repeats. clip_norm: this round's C. The hashes are SHA-256.
    left_out: with whom a fault was proven (`privacy.faults`), and who is in no cohort any more. weight_scale: what
    clients multiply their weights by (`update_codec.weight_scale`).
    """

    run: str
    exchange: int
    round: int
    backbone: bytes
    shared: bytes
    config: bytes
    clip_norm: float
    cohort: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    weight_scale: float = 1.0


@dataclass(frozen=True)
class Advertised:
    """The signed advertisements of everybody who made one (U1), passed on as they came."""

    advertisements: tuple[bytes, ...]


@dataclass(frozen=True)
class SealedFrom:
    """A share as its owner sealed it, and the owner's commitment to it."""

    owner: str
    ciphertext: bytes
    commitment: bytes


@dataclass(frozen=True)
class Delivered:
    """Those who dealt shares (U2) and either hold this client's or dealt it theirs; and what these sealed for it."""

    partners: tuple[str, ...]
    shares: tuple[SealedFrom, ...]


@dataclass(frozen=True)
class Survivors:
    """U3: whose masked inputs arrived; and the shares of their seeds that this client holds."""

    clients: tuple[str, ...]
    seeds: tuple[SealedFrom, ...]


@dataclass(frozen=True)
class UnmaskRequest:
    """The signed `Consistency` messages that allow a client to open what it has, those that complain of its shares
    among them. What it opens is its own to know: seeds of those whom it confirmed, keys of the others."""

    confirmations: tuple[bytes, ...]


# Coordinator to site, beside these:


@dataclass(frozen=True)
class Part:
    """A file that sites fetch by its SHA-256. name: of a file of the model to start from, of a phase, or "shared"."""

    name: str
    digest: bytes
    size: int


@dataclass(frozen=True)
class Offer:
    """What a run is about. nonce: 16 random bytes. config: its settings, JSON. start: the model's files; none where it
    ships with the package. conditions: how clips are to be prepared, JSON. The run's name is a hash of all but the
    settings (`coordinator.offer`), which plans hash."""

    nonce: bytes
    config: str
    start: tuple[Part, ...]
    conditions: str


@dataclass(frozen=True)
class Order:
    """What one site is asked in an exchange. stage: "train", with the signed plan as its frame, or one of the
    protocol's. parts: in "train", what phases before ended with, and the shared vector, float32. With the stage "over"
    the run is, and the parts are the released model's files."""

    exchange: int
    stage: str
    frame: bytes
    parts: tuple[Part, ...] = ()
