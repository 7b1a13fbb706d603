"""Policy: the forty-nine published systems atoll is made of: what each gives a user, and how far it is built."""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from atoll.errors import InvalidConfig

Status = Literal["works", "partly", "planned"]


@dataclass(frozen=True, slots=True)
class System:
    """One published system. `module` holds it, or will; "" while undecided."""

    slug: str
    title: str
    room: str
    what: str
    module: str = ""
    status: Status = "planned"


def by_slug(slug: str) -> System:
    """The system, or part, of that name. Raises InvalidConfig, naming the nearest one."""
    known = {system.slug: system for system in (*SYSTEMS, *PARTS)}
    if slug in known:
        return known[slug]
    near = get_close_matches(slug, known, n=1, cutoff=0)
    raise InvalidConfig(f"unknown system {slug!r}; the nearest is {near[0]!r}, `atoll systems` lists all")


def table_markdown() -> str:
    """All systems as a Markdown table: status, name, what it gives, room and module."""
    lines = ["| system | gives | room | module | status |", "|---|---|---|---|---|"]
    for system in SYSTEMS:
        module = f"`{system.module}`" if system.module else ""
        name = f"**{system.slug}**<br>{system.title}"
        lines.append(f"| {name} | {system.what} | {system.room} | {module} | {system.status} |")
    return "\n".join(lines) + "\n"


PARTS: tuple[System, ...] = (
    System(
        "simulator",
        "The same world in virtual time",
        "sim",
        "Answers what would happen on machines and networks one does not have, by the code that runs for real.",
        module="atoll.sim",
        status="partly",
    ),
)
"""Not a published system each, but what several of them share, and can be demonstrated like one."""

SYSTEMS: tuple[System, ...] = (
    System(
        "pccl",
        "Prime Collective Communications Library (PCCL)",
        "group",
        "Peers on the open internet join, leave and crash while the rest keep averaging, their states equal bitwise.",
        module="atoll.group",
        status="works",
    ),
    System(
        "flow-splitting",
        'Challenging the Need for Packet Spraying in Large-Scale Distributed Training ("Ethereal")',
        "group + sim",
        "Spreads a collective over all paths of a network as evenly as packet spraying, by cutting very few flows.",
        module="atoll.group.paths",
    ),
    System(
        "moe-inference-survey",
        "A Survey on Inference Optimization Techniques for Mixture of Experts Models",
        "moe",
        "One map of the ways to make mixture-of-experts inference cheaper, each with its switch and its measured gain.",
        module="atoll.moe.registry",
    ),
    System(
        "burstgpt",
        "BurstGPT: A Real-world Workload Dataset to Optimize LLM Serving Systems",
        "workload + serve",
        "Drives a real or simulated server with the bursts of real language-model traffic, replayed or fitted.",
        module="atoll.workload",
        status="works",
    ),
    System(
        "dadao",
        "DADAO: Decoupled Accelerated Decentralized Asynchronous Optimization",
        "train",
        "Minimises a shared convex loss over any connected graph: no server, no rounds, each peer on its own clocks.",
        module="atoll.train.gossip",
    ),
    System(
        "elasticmoe",
        "ElasticMoE: An Efficient Auto Scaling Method for Mixture-of-Experts Models",
        "moe + serve",
        "Grows and shrinks a running expert-parallel model within seconds, without dropping a request.",
    ),
    System(
        "sequential-gradient-coding",
        "Sequential Gradient Coding For Straggler Mitigation",
        "train",
        "Finishes a stream of gradient jobs without waiting for slow workers, by coding across workers and rounds.",
    ),
    System(
        "comet",
        "Comet: Fine-grained Computation-communication Overlapping for Mixture-of-Experts",
        "moe",
        "Hides an expert layer's token traffic behind its matrix products, tile by tile.",
    ),
    System(
        "jitserve",
        "JITServe: SLO-aware LLM Serving with Imprecise Request Information",
        "serve",
        "Serves each request by its own promise (smooth stream, deadline, whole task) though lengths are unknown.",
    ),
    System(
        "decentralized-diffusion",
        "Decentralized Diffusion Models",
        "train + model",
        "Trains a diffusion model as experts that never exchange a byte, and samples from all through a small router.",
    ),
    System(
        "c4",
        "C4: Boosting Large-scale Parallel Training Efficiency, A Communication-Driven Approach",
        "group + sim",
        "Names the hung or slow machine within seconds from the timing of collectives alone, and goes on without it.",
        module="atoll.group.health",
    ),
    System(
        "ordinary-node",
        "How Long It Takes for an Ordinary Node with an Ordinary ID to Output?",
        "graph",
        "Measures how soon a typical peer can decide, not just the last one, and picks algorithms by it.",
        module="atoll.graph.local",
    ),
    System(
        "lifl",
        "LIFL: A Lightweight, Event-driven Serverless Platform for Federated Learning",
        "train",
        "Aggregates many clients' updates with processes that live only while there is work, over shared memory.",
        module="atoll.train.federated",
    ),
    System(
        "com-ddpg",
        "Com-DDPG: A Multiagent Reinforcement Learning-based Offloading Strategy for Mobile Edge Computing",
        "place",
        "Trains cooperating agents that pick where the dependent parts of mobile jobs run, saving energy and time.",
    ),
    System(
        "vanishing-variance",
        "Vanishing Variance Problem in Fully Decentralized Neural-Network Systems",
        "train",
        "Lets gossip between differently initialised models learn as fast as with a server, by restoring variance.",
        module="atoll.train.gossip",
    ),
    System(
        "flag-aggregator",
        "Flag Aggregator: Scalable Distributed Training under Failures and Augmented Losses using Convex Optimization",
        "train",
        "Combines gradients so that broken, lying or noisy workers do little harm, however many they are.",
    ),
    System(
        "infinite-llm",
        "Infinite-LLM: Efficient LLM Service for Long Context with DistAttention and Distributed KVCache",
        "serve",
        "Lets the memory of one long conversation spill over many machines, with exact answers.",
        module="atoll.serve.kv",
    ),
    System(
        "llumnix",
        "Llumnix: Dynamic Scheduling for Large Language Model Serving",
        "serve",
        "Moves running requests between model instances with hardly a pause: balance, priorities, draining, scaling.",
    ),
    System(
        "tokenweave",
        "TokenWeave: Efficient Compute-Communication Overlap for Distributed LLM Inference",
        "model",
        "Cuts a batch in two so that one half computes while the other's all-reduce and norm run as one fused step.",
    ),
    System(
        "priority-packing",
        "Priority Matters: Optimising Kubernetes Clusters Usage with Constraint-Based Pod Packing",
        "place",
        "Fits the most important pods onto a Kubernetes cluster with the fewest moves, and proves it where it can.",
    ),
    System(
        "agent-protocols-survey",
        "A Survey of AI Agent Protocols",
        "agents",
        "Measures agent protocols side by side, so that one is chosen by numbers.",
        module="atoll.agents.bench",
    ),
    System(
        "one-byte",
        "Just One Byte (per gradient): A Note on Low-Bandwidth Decentralized Language Model Finetuning Using "
        "Shared Randomness",
        "train",
        "Fine-tunes one language model on several machines that send each other a single byte per gradient.",
        module="atoll.train.one_byte",
        status="works",
    ),
    System(
        "semi-pd",
        "semi-PD: Towards Efficient LLM Serving via Phase-Wise Disaggregated Computation and Unified Storage",
        "serve",
        "Runs prefill and decode side by side on one device: one copy of weights and cache, shares set by targets.",
    ),
    System(
        "fsmoe",
        "FSMoE: A Flexible and Scalable Training System for Sparse Mixture-of-Experts Models",
        "moe",
        "Builds expert layers from exchangeable parts, profiles them once and overlaps their traffic by its own plan.",
    ),
    System(
        "cloud-load-balancing",
        "Intelligent Load Balancing in Cloud Computer Systems",
        "place",
        "Replays a real cluster's trace and compares central search with negotiating agents in avoiding overload.",
    ),
    System(
        "selforg",
        "Stochastic Self-Organization in Multi-Agent Systems (SelfOrg)",
        "agents",
        "Asks a group of models one question; their answers decide who hears whom, and the group beats its members.",
        module="atoll.agents.selforg",
    ),
    System(
        "janus",
        "Janus: Disaggregating Attention and Experts for Scalable MoE Inference",
        "moe + serve",
        "Runs attention and experts of one model on separate pools, each as large as a per-token deadline needs.",
    ),
    System(
        "single-merging",
        "A Single Merging Suffices: Recovering Server-based Learning Performance in Decentralized Learning",
        "train",
        "Trains peers almost alone and averages them once at the end, as good as a server every round.",
        module="atoll.train.gossip",
    ),
    System(
        "universal-checkpointing",
        "Universal Checkpointing (UCP): save sharded, resume on any parallel layout",
        "checkpoint",
        "Saves a sharded training run and resumes it on any other number of machines and split of the model.",
        module="atoll.checkpoint",
    ),
    System(
        "commformer",
        "CommFormer — Communication Learning in Multi-Agent Systems from Graph Modeling Perspective",
        "agents",
        "Trains a team whose members learn whom to listen to, and when, within a budget of links.",
        module="atoll.agents.commformer",
    ),
    System(
        "exflow",
        "Exploiting Inter-Layer Expert Affinity for Accelerating Mixture-of-Experts Model Inference (ExFlow)",
        "moe",
        "Places experts where tokens already are, so that each expert layer needs one exchange instead of two.",
    ),
    System(
        "llm-routing",
        "Doing More with Less – Implementing Routing Strategies in LLM-Based Systems: An Extended Survey",
        "route",
        "Sends each question to the cheapest model that will answer it well enough.",
    ),
    System(
        "xllm",
        "xLLM Technical Report",
        "serve",
        "Runs one service for online, offline and multimodal traffic on instances whose roles change with demand.",
    ),
    System(
        "distserve",
        "DistServe: Disaggregating Prefill and Decoding for Goodput-optimized LLM Serving",
        "serve",
        "Prefill and decode on different workers, in the layout that meets latency targets with the fewest devices.",
    ),
    System(
        "agent-interop",
        "A Survey of Agent Interoperability Protocols: MCP, ACP, A2A and ANP",
        "agents",
        "An agent written once, reachable over MCP, ACP, A2A and ANP.",
        module="atoll.agents.gateway",
    ),
    System(
        "co2",
        "CO2: Efficient Distributed Training with Full Communication-Computation Overlap",
        "train",
        "Trains data-parallel on slow networks: the average of past steps travels while the next ones are computed.",
        module="atoll.train.momentum",
        status="works",
    ),
    System(
        "fedcompass",
        "FedCompass: semi-asynchronous cross-silo FL with a computing-power-aware scheduler",
        "train",
        "Gives slow and fast clients the amount of work that lets them finish together.",
        module="atoll.train.federated",
    ),
    System(
        "streaming-diloco",
        "Streaming DiLoCo with overlapping communication: Towards a Distributed Free Lunch",
        "train",
        "Trains one model over slow links with a hundredth of the bytes, one fragment at a time, behind the computing.",
        module="atoll.train.outer",
        status="works",
    ),
    System(
        "tokenring",
        "TokenRing: An Efficient Parallelism Framework for Infinite-Context LLMs via Bidirectional Communication",
        "model",
        "Exact attention over a sequence spread on many devices, using both directions of each link.",
    ),
    System(
        "duo-llm",
        "Duo-LLM: A Framework for Studying Adaptive Computation in Large Language Models",
        "moe + model",
        "Shows how much computing each token needs: small and big modules per layer, an exact oracle, and routers.",
    ),
    System(
        "dfedsam",
        "Improving the Model Consistency of Decentralized Federated Learning: DFedSAM and DFedSAM-MGS",
        "train",
        "Federated learning without a server whose clients look for flat minima and so agree better.",
        module="atoll.train.gossip",
    ),
    System(
        "semantic-cache",
        "Category-Aware Semantic Caching for Heterogeneous LLM Workloads",
        "route",
        "Answers questions already asked in other words, with rules for each category of traffic.",
    ),
    System(
        "personalized-pagerank",
        "Distributed Algorithms for Fully Personalized PageRank on Large Graphs",
        "graph",
        "Finds who matters to whom for every node of a large weighted graph, on ordinary machines.",
        module="atoll.graph.ppr",
    ),
    System(
        "t3",
        "T3: Transparent Tracking & Triggering for Fine-grained Overlap of Compute & Collectives",
        "model + sim",
        "Starts sending each tile of a matrix product the moment it is finished, without changing the product's code.",
    ),
    System(
        "g-rank",
        "G-Rank: Unsupervised Continuous Learn-to-Rank for Edge Devices in a P2P Network",
        "graph",
        "Searches a catalogue shared by peers with a ranking that improves by gossip alone.",
        module="atoll.graph.grank",
    ),
    System(
        "elaswave",
        "ElasWave: An Elastic-Native System for Scalable Hybrid-Parallel Training",
        "train",
        "Keeps a pipelined training run exact while workers die and join, within seconds and without a restart.",
        module="atoll.train.elastic",
    ),
    System(
        "ai-flow",
        "AI Flow at the Network Edge",
        "route",
        "Splits one request over device, edge and cloud so that only what the task needs crosses the network.",
    ),
    System(
        "fedfix",
        "A General Theory for Federated Optimization with Asynchronous and Heterogeneous Clients Updates (FedFix)",
        "train",
        "One federated server for synchronous and asynchronous clients, whose weights keep the right optimum.",
        module="atoll.train.federated",
    ),
    System(
        "speculative-moe",
        "Speculative MoE: Communication Efficient Parallel MoE Inference with Speculative Token and Expert "
        "Pre-scheduling",
        "moe",
        "Guesses a token's experts and moves it there early; a wrong guess costs a transfer, never a token.",
    ),
)
