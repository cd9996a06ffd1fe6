'use strict'
// openapi.json for people. Every text goes in as text, never as markup.
const make = (tag, className = '', text = '') =>
  Object.assign(document.createElement(tag), { className, textContent: text })

const table = (name, heads, rows) => {
  const box = Object.assign(make('div', 'scroll'), { tabIndex: 0 })
  const grid = make('table')
  box.setAttribute('role', 'region')
  box.setAttribute('aria-label', name)
  const head = make('tr')
  for (const text of heads) head.append(Object.assign(make('th', '', text), { scope: 'col' }))
  grid.append(make('thead'), make('tbody'))
  grid.tHead.append(head)
  for (const cells of rows) {
    const row = make('tr')
    row.append(...cells.map((text, i) => make(i ? 'td' : 'th', '', text)))
    row.firstChild.scope = 'row'
    grid.tBodies[0].append(row)
  }
  box.append(grid)
  return box
}

const nameOf = (ref) => ref.split('/').at(-1)

// A type in words: integer 1–1000, list of ImageResult, string or nothing.
const typeOf = (schema) => {
  if (!schema) return ''
  if (schema.$ref) return nameOf(schema.$ref)
  if (schema.anyOf) return schema.anyOf.map(typeOf).join(' or ')
  if (schema.prefixItems) return schema.prefixItems.map(typeOf).join(', ')
  if (schema.type === 'array') return `list of ${typeOf(schema.items)}`
  const range = 'minimum' in schema ? ` ${schema.minimum}–${schema.maximum}` : ''
  return (schema.type === 'null' ? 'nothing' : (schema.type ?? 'anything')) + range
}

const curl = (path, method, operation) => {
  const token = operation.security ? ' -H "Authorization: Bearer $SIMAM_EMA_TOKEN"' : ''
  const file = operation.requestBody ? ' -F files=@image.jpg' : ''
  return `curl${token}${file} '${new URL('.' + path, location.href)}${method === 'post' ? '?k=3' : ''}'`
}

const describe = (path, method, operation) => {
  const section = make('section', 'card')
  const title = make('h2')
  title.append(make('code', '', `${method.toUpperCase()} ${path}`))
  section.append(title, make('p', 'lines', operation.description ?? operation.summary))
  section.append(Object.assign(make('pre', '', curl(path, method, operation)), { tabIndex: 0 }))
  const body = Object.keys(operation.requestBody?.content ?? {})
  if (body.length) {
    section.append(make('p', '', `The body: ${body.join(', ')}; in a form the files are called “files”.`))
  }
  const asked = (operation.parameters ?? []).map((p) => {
    const about = p.schema?.description ?? p.description ?? ''
    return [p.name, typeOf(p.schema), p.schema?.default === undefined ? '' : String(p.schema.default), about]
  })
  if (asked.length) section.append(table(`Parameters of ${path}`, ['parameter', 'type', 'if left out', 'what'], asked))
  const answers = Object.entries(operation.responses).map(([status, answer]) => {
    const [[kind, content] = []] = Object.entries(answer.content ?? {})
    return [status, typeOf(content?.schema) || kind || '', answer.description]
  })
  section.append(table(`Answers of ${path}`, ['status', 'answer', 'when'], answers))
  return section
}

const describeType = (name, schema) => {
  const section = make('section', 'card')
  section.append(Object.assign(make('h2', '', name), { id: name }), make('p', 'lines', schema.description ?? ''))
  const fields = Object.entries(schema.properties ?? {})
  const rows = fields.map(([field, type]) => [field, typeOf(type), type.description ?? ''])
  section.append(table(`Fields of ${name}`, ['field', 'type', 'what'], rows))
  return section
}

const show = async () => {
  const api = await (await fetch('openapi.json')).json()
  document.getElementById('about').textContent = api.info.description
  const sections = Object.entries(api.paths).flatMap(([path, operations]) =>
    Object.entries(operations).map(([method, operation]) => describe(path, method, operation)),
  )
  const known = Object.entries(api.components?.schemas ?? {}).map(([name, schema]) => describeType(name, schema))
  document.getElementById('operations').replaceChildren(...sections, ...known)
}

show().catch(() => {
  document.getElementById('status').textContent = 'The service does not answer: it was stopped, or cannot be reached.'
})
