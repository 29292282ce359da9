"""The reference hub's tools without their servers: names, arguments and servers as the wordings know them."""

from llm_tuner.data.wordings import holes, servers
from llm_tuner.types import ToolSpec


def _schema(wording):
    properties = {name: {} for way in wording.ways for name in (way.arguments or way.say)}
    everywhere = set.intersection(*(set(way.arguments or way.say) for way in wording.ways))
    return {"type": "object", "properties": properties, "required": sorted(everywhere)}


TOOLS = tuple(
    ToolSpec(
        name=name,
        description=f"{' '.join(name.split('_')).capitalize()}.",
        parameters=_schema(wording),
        server=server.server,
    )
    for server in servers()
    for name, wording in server.tools.items()
)
CALLABLE = frozenset(tool.name for tool in TOOLS if tool.server not in ("github", "slack"))
assert holes("{a}") == {"a"}
