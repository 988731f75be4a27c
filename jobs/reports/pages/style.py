"""The style of the HTML report: light and dark, wide and narrow, on paper. All text has a contrast of 4.5 and more."""

LIGHT = """
  --ink: #1b2330; --soft: #566072; --line: #dfe3ea; --paper: #fff; --ground: #f5f6f8; --fill: #3d6fd6;
  --bad: #b3261e; --tint: #eef3fd
"""
DARK = """
  --ink: #e7eaf0; --soft: #a5afc0; --line: #303a4b; --paper: #181f2b; --ground: #0f141c; --fill: #7aa5fa;
  --bad: #ff8f85; --tint: #1f2a3e
"""
STYLE = f"""
:root {{ color-scheme: light dark; {LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }}
* {{ box-sizing: border-box }}
body {{ margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif }}
body {{ -webkit-text-size-adjust: 100%; overflow-wrap: anywhere }}
main {{ max-width: 1080px; margin: 0 auto; padding: 40px 20px 64px }}
h1 {{ font-size: 26px; line-height: 1.25; margin: 0 }}
h2 {{ font-size: 20px; line-height: 1.3; margin: 40px 0 12px }}
h3, caption {{ font-size: 14px; font-weight: 600; line-height: 1.4; margin: 0; text-align: left }}
h4 {{ font-size: 12.5px; font-weight: 400; color: var(--soft); margin: 0 0 8px }}
p {{ margin: 4px 0 0 }}
header p, .note {{ color: var(--soft) }} .note {{ font-size: 13px }} h2 + .note {{ margin: -8px 0 12px }}
.bad {{ color: var(--bad) }}
.card {{ background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 16px; margin: 0 }}
.card {{ min-width: 0 }}
.grid {{ display: grid; gap: 16px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)) }}
.full {{ grid-column: 1 / -1 }}
.tiles {{ display: flex; flex-wrap: wrap; gap: 16px 28px; margin: 24px 0 0 }} .tiles div {{ flex: 1 0 auto }}
.tiles div {{ display: flex; flex-direction: column-reverse; justify-content: flex-end }}
.tiles dt {{ color: var(--soft); font-size: 13px; line-height: 1.35 }}
.tiles dd {{ margin: 0; font-size: 24px; font-weight: 600; line-height: 1.25; font-variant-numeric: tabular-nums }}
.plot svg {{ display: block; width: 100%; max-width: 460px; height: auto; margin: 12px 0 4px; overflow: visible }}
.facts {{ display: grid; grid-template-columns: fit-content(55%) 1fr; gap: 5px 16px; margin: 8px 0 0 }}
.facts:first-child {{ margin-top: 0 }} .facts dt {{ color: var(--soft) }}
.facts dd {{ margin: 0; font-variant-numeric: tabular-nums }}
table {{ border-collapse: collapse; width: 100%; font-size: 14px }}
caption {{ padding-bottom: 8px }}
th, caption {{ overflow-wrap: normal }}
th {{ font-weight: 600; color: var(--soft); font-size: 13px; vertical-align: bottom }}
th, td {{ text-align: left; padding: 5px 12px 5px 0; border-bottom: 1px solid var(--line) }}
td {{ vertical-align: top }} tr > :last-child {{ padding-right: 0 }} tbody tr:last-child td {{ border-bottom: 0 }}
.number {{ text-align: right; font-variant-numeric: tabular-nums; width: 1% }} td.number {{ white-space: nowrap }}
details:not(.card) {{ margin-top: 10px }} summary {{ cursor: pointer; color: var(--soft); font-size: 13px }}
pre {{ white-space: pre-wrap; font: 12.5px/1.5 ui-monospace, monospace; margin: 12px 0 0 }}
.sample dl {{ margin: 0 }} .sample dt {{ color: var(--soft); font-size: 12.5px; margin-top: 8px }}
.sample dd {{ margin: 0; white-space: pre-wrap; font-size: 14px }}
.sample .answer {{ background: var(--tint); border-radius: 6px; padding: 6px 10px; margin-top: 2px }}
.sample .note {{ margin-top: 8px }} .sample b {{ font-weight: 600 }}
@media (min-width: 601px) {{
  .wide td:nth-child(-n + 2) {{ white-space: nowrap }}
  .alone .facts {{ grid-template-columns: fit-content(24%) 1fr fit-content(24%) 1fr }}
  .alone.plot {{ display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 0 16px }}
  .alone.plot h3 {{ grid-column: 1 / -1 }} .alone.plot > div {{ margin-top: 8px }}
}}
@media (max-width: 600px) {{
  main {{ padding: 24px 12px 40px }} h1 {{ font-size: 22px }} h2 {{ margin-top: 32px }} .card {{ padding: 14px }}
  .tiles {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(120px, 1fr)) }}
  .tiles dd {{ font-size: 20px }}
  .facts {{ grid-template-columns: 1fr; gap: 0 }} .facts dd {{ margin-bottom: 8px }}
  .wide thead {{ position: absolute; clip-path: inset(50%); width: 1px; height: 1px; overflow: hidden }}
  .wide, .wide caption, .wide tbody, .wide tr, .wide td {{ display: block; width: auto }}
  .wide td {{ border: 0; padding: 2px 0; text-align: left }}
  .wide tr {{ border-bottom: 1px solid var(--line); padding: 8px 0 }}
  .wide td::before {{ content: attr(data-label); display: block; color: var(--soft); font-size: 12.5px }}
}}
@media print {{
  :root {{ color-scheme: light; {LIGHT} }}
  @page {{ margin: 14mm }}
  body {{ background: none; font-size: 10.5pt }} main {{ max-width: none; padding: 0 }}
  h2, h3, caption {{ break-after: avoid }} .card, tr {{ break-inside: avoid }}
  .grid {{ grid-template-columns: 1fr 1fr; gap: 12px }} details:not([open]) {{ display: none }}
}}
"""
