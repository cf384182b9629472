//! The root in another form, and how it is said to the driver, which tells its parameters at debug.

use crate::{
    cluster::StoredRoot,
    store::{
        Erased,
        postgres::{
            error::PgError,
            sql::{SqlType, execute, query},
        },
        root_columns,
    },
};
use bytes::BytesMut;
use tokio_postgres::{
    Client,
    types::{IsNull, ToSql, Type, to_sql_checked},
};

/// A root's bytes as a parameter.
pub(crate) struct Seed<'a>(pub(crate) &'a [u8]);

impl std::fmt::Debug for Seed<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

impl SqlType for Seed<'_> {
    const TYPE: Type = Type::BYTEA;
}

impl ToSql for Seed<'_> {
    fn to_sql(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        self.0.to_sql(ty, out)
    }

    fn accepts(ty: &Type) -> bool {
        <&[u8] as ToSql>::accepts(ty)
    }

    to_sql_checked!();
}

/// The cluster's row is the caller's.
pub(crate) async fn set(client: &Client, root: &StoredRoot) -> Result<(), PgError> {
    let (seed, public) = root_columns(root);
    let (seed, public) = (Seed(seed), public.as_ref().map(<[u8; 32]>::as_slice));
    let set =
        "UPDATE cluster SET root_seed = $1, root_public = $2::bytea, root_wrapped = $2::bytea IS NOT NULL,
         root_overwritten = root_overwritten + 1";
    execute(client, set, &[&seed, &public]).await.map(|_| ())
}

pub(crate) async fn put(client: &Client, was: &StoredRoot, root: &StoredRoot) -> Result<bool, PgError> {
    let ((was, _), (seed, public)) = (root_columns(was), root_columns(root));
    let (was, seed, public) = (Seed(was), Seed(seed), public.as_ref().map(<[u8; 32]>::as_slice));
    let put = execute(
        client,
        "UPDATE cluster SET root_seed = $1, root_public = $2::bytea, root_wrapped = $2::bytea IS NOT NULL,
             root_overwritten = root_overwritten + 1
         WHERE root_seed = $3 AND moved_to IS NULL",
        &[&seed, &public, &was],
    )
    .await?;
    Ok(put > 0)
}

/// The old row stays in the table's file until that is written anew. It has one row: this takes no time.
pub(crate) async fn erase_former(client: &Client) -> Result<Erased, PgError> {
    let sql = "SELECT root_overwritten, pg_relation_filenode('cluster') FROM cluster WHERE root_erased < root_overwritten";
    let Some(before) = query(client, sql, &[]).await?.into_iter().next() else { return Ok(Erased::Before) };
    client.batch_execute("VACUUM (FULL) cluster").await?;
    let after = query(client, "SELECT pg_relation_filenode('cluster')", &[]).await?;
    // Postgres only warns a role that may not do it.
    let after: Option<u32> = after.first().map(|row| row.try_get(0)).transpose()?;
    if after == Some(before.try_get(1)?) {
        return Ok(Erased::NotAllowed);
    }
    let overwritten: i64 = before.try_get(0)?;
    let erased = "UPDATE cluster SET root_erased = greatest(root_erased, $1)";
    execute(client, erased, &[&overwritten]).await?;
    Ok(Erased::Now)
}
