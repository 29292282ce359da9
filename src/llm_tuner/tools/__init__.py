"""The tools of a run: MCP servers and their configurations (servers, hub), and recorded answers (recorded).

A server is reached here and nowhere else; nothing here judges an answer or keeps it. Import from the modules: this
package loads nothing, so that reading a configuration does not load the MCP SDK.
"""
