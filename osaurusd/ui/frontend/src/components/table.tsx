import type { ComponentChild } from "preact";

export interface Column<Row> {
  title: string;
  render: (row: Row) => ComponentChild;
  kind?: "name" | "number" | "fixed" | "actions";
}

interface TableProps<Row> {
  label: string;
  columns: Column<Row>[];
  rows: Row[];
  rowKey: (row: Row) => string;
}

/** A table that becomes a list of labelled values on a narrow screen. The roles keep it a table there. */
export function Table<Row>({ label, columns, rows, rowKey }: TableProps<Row>) {
  return (
    <div class="table-frame">
      <table class="table" role="table" aria-label={label}>
        <thead role="rowgroup">
          <tr role="row">
            {columns.map(({ title, kind }) => (
              <th key={title} role="columnheader" scope="col" class={kind}>
                {kind === "actions" ? <span class="offscreen">{title}</span> : title}
              </th>
            ))}
          </tr>
        </thead>
        <tbody role="rowgroup">
          {rows.map((row) => (
            <tr key={rowKey(row)} role="row">
              {columns.map((column) => (
                <Cell key={column.title} column={column} row={row} />
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function Cell<Row>({ column, row }: { column: Column<Row>; row: Row }) {
  const content = column.render(row);
  if (column.kind === "name") {
    return (
      <th role="rowheader" scope="row" class="name">
        {content}
      </th>
    );
  }
  return (
    <td role="cell" class={column.kind} data-label={column.title}>
      <div>{content}</div>
    </td>
  );
}
