"""Old names of `devicekit.coordination`."""

from devicekit.renamed import renamed

__getattr__ = renamed(
    __name__,
    {
        "Agreement": "devicekit.coordination:Coordinator",
        "Alone": "devicekit.coordination:SingleRank",
        "everywhere": "devicekit.coordination:run_on_all_ranks",
    },
)
