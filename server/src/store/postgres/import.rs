//! A whole cluster at once, into the tables; and the note that it went elsewhere.

use crate::{
    cluster::{Node, Removed, SetupKey, Snapshot},
    store::{
        Hint, Imported, Occupied, column, number,
        postgres::{
            error::PgError,
            log,
            root::Seed,
            sql::{execute, notify, query},
        },
        root_columns,
    },
};
use proto::map::MapVersion;
use tokio_postgres::Client;

/// Rows per statement.
const BATCH: usize = 1000;
const EMPTY: &str = "DELETE FROM cluster; DELETE FROM nodes; DELETE FROM setup_keys; DELETE FROM removals;
    DELETE FROM recovery; DELETE FROM settings; DELETE FROM roots; DELETE FROM holdings; DELETE FROM holder_leases; DELETE FROM changes; DELETE FROM servers; DELETE FROM sessions; DELETE FROM signals";

/// After an error the connection is closed by the caller, which rolls back.
pub(crate) async fn import(
    client: &Client,
    snapshot: &Snapshot,
    occupied: Occupied,
) -> Result<Imported, PgError> {
    // The caller's deadline bounds the whole.
    client.batch_execute("BEGIN; SET LOCAL statement_timeout = 0").await?;
    let imported = match refusal(client, occupied).await? {
        None if insert(client, snapshot).await? => Imported::Done,
        // Somebody else was first.
        None => Imported::Occupied,
        Some(refused) => refused,
    };
    let end = if imported == Imported::Done { "COMMIT" } else { "ROLLBACK" };
    client.batch_execute(end).await?;
    Ok(imported)
}

async fn refusal(client: &Client, occupied: Occupied) -> Result<Option<Imported>, PgError> {
    if query(client, "SELECT 1 FROM cluster FOR UPDATE", &[]).await?.is_empty() {
        return Ok(None);
    }
    let held = "SELECT count(*) FROM servers WHERE lease_until > clock_timestamp()";
    let held = query(client, held, &[]).await?;
    let servers = number(held.first().map_or(Ok(0), |row| row.try_get(0))?);
    Ok(match (occupied, servers) {
        (Occupied::Refuse, _) => Some(Imported::Occupied),
        (Occupied::Replace, 0) => None,
        (Occupied::Replace, servers) => Some(Imported::InUse { servers }),
    })
}

/// Returns whether no other cluster came in between.
async fn insert(client: &Client, snapshot: &Snapshot) -> Result<bool, PgError> {
    client.batch_execute(EMPTY).await?;
    if !insert_cluster(client, snapshot).await? {
        return Ok(false);
    }
    for batch in snapshot.nodes.chunks(BATCH) {
        log::put_nodes(client, &batch.iter().collect::<Vec<&Node>>()).await?;
    }
    for batch in snapshot.setup_keys.chunks(BATCH) {
        log::put_setup_keys(client, &batch.iter().collect::<Vec<&SetupKey>>()).await?;
    }
    for batch in snapshot.removals.chunks(BATCH) {
        log::put_removals(client, &batch.iter().collect::<Vec<&Removed>>()).await?;
    }
    log::put_recovery(client, snapshot.recovery.as_ref()).await?;
    log::put_settings(client, snapshot.settings.as_ref()).await?;
    log::put_roots(client, snapshot.roots.as_ref()).await?;
    log::put_holdings(client, snapshot.holdings.as_ref()).await?;
    notify(client, Hint::Anything).await?;
    Ok(true)
}

async fn insert_cluster(client: &Client, snapshot: &Snapshot) -> Result<bool, PgError> {
    let (founding, MapVersion { epoch, revision }) = (&snapshot.founding, snapshot.head.version);
    let (network, (seed, public)) = (&founding.network, root_columns(&founding.root));
    let (v4, v6) = (network.overlay_v4.to_string(), network.overlay_v6.to_string());
    let (seed, public) = (Seed(seed), public.as_ref().map(<[u8; 32]>::as_slice));
    let (id, change) = (founding.network_id.0.as_slice(), snapshot.head.id.0.as_slice());
    let (epoch, revision, next) = (column(epoch), column(revision), column(snapshot.next_node_id.0));
    let inserted = execute(
        client,
        "WITH inserted AS (
             INSERT INTO cluster (network_id, root_seed, root_public, root_wrapped, network_name, overlay_v4, overlay_v6, epoch,
                 revision, last_change, next_node_id)
             VALUES ($1, $2, $3::bytea, $3::bytea IS NOT NULL, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT DO NOTHING
             RETURNING revision, epoch, last_change)
         INSERT INTO changes (revision, epoch, id, at_unix_s, actor, ops)
         SELECT revision, epoch, last_change, extract(epoch FROM clock_timestamp())::bigint, 'recovery', '[]' FROM inserted",
        &[&id, &seed, &public, &network.name, &v4, &v6, &epoch, &revision, &change, &next],
    );
    Ok(inserted.await? > 0)
}

pub(crate) async fn set_moved(client: &Client, to: Option<&str>) -> Result<bool, PgError> {
    let set = "UPDATE cluster SET moved_to = $1::text
         WHERE $1::text IS NULL OR moved_to IS NULL OR moved_to = $1::text";
    Ok(execute(client, set, &[&to]).await? > 0)
}
