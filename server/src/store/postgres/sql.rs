//! Statements without preparation: each is one round trip, and several that are polled together are one in all. The types of the parameters are
//! known here, so the database need not be asked for them, and a connection carries no state but its settings.

use crate::store::{
    Hint,
    postgres::{error::PgError, listen},
};
use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
};
use tokio_postgres::{
    Client, GenericClient, Row,
    types::{Json, ToSql, Type},
};

/// Commits do not wait for the disk: for what is told again within seconds.
pub(crate) const BEGIN_RELAXED: &str = "BEGIN; SET LOCAL synchronous_commit = off";
/// Who reads decides how long it may take.
pub(crate) const BEGIN_SNAPSHOT: &str =
    "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = 0";

/// A value whose type in SQL follows from its type in Rust.
pub(crate) trait SqlType {
    const TYPE: Type;
}

/// A parameter of a statement.
pub(crate) trait Parameter: Sync {
    fn typed(&self) -> (&(dyn ToSql + Sync), Type);
}

impl<T: SqlType + ToSql + Sync> Parameter for T {
    fn typed(&self) -> (&(dyn ToSql + Sync), Type) {
        (self, T::TYPE)
    }
}

macro_rules! sql_types {
    ($($rust:ty => $sql:ident, $array:ident;)*) => {
        $(
            impl SqlType for $rust {
                const TYPE: Type = Type::$sql;
            }
            impl SqlType for Vec<$rust> {
                const TYPE: Type = Type::$array;
            }
        )*
    };
}

sql_types! {
    i64 => INT8, INT8_ARRAY;
    i32 => INT4, INT4_ARRAY;
    f64 => FLOAT8, FLOAT8_ARRAY;
    bool => BOOL, BOOL_ARRAY;
    String => TEXT, TEXT_ARRAY;
    &str => TEXT, TEXT_ARRAY;
    &[u8] => BYTEA, BYTEA_ARRAY;
    Vec<u8> => BYTEA, BYTEA_ARRAY;
}

impl<T> SqlType for Json<T> {
    const TYPE: Type = Type::JSONB;
}

impl<T> SqlType for Vec<Json<T>> {
    const TYPE: Type = Type::JSONB_ARRAY;
}

impl<T: SqlType> SqlType for Option<T> {
    const TYPE: Type = T::TYPE;
}

/// Nothing is sent before it is polled.
pub(crate) fn query<'a, C: GenericClient + Sync>(
    client: &'a C,
    sql: &'a str,
    parameters: &[&'a dyn Parameter],
) -> impl Future<Output = Result<Vec<Row>, PgError>> + Send + use<'a, C> {
    let parameters: Vec<_> = parameters.iter().map(|parameter| parameter.typed()).collect();
    async move { Ok(client.query_typed(sql, &parameters).await?) }
}

/// As [`query`]; returns how many rows were changed.
pub(crate) fn execute<'a, C: GenericClient + Sync>(
    client: &'a C,
    sql: &'a str,
    parameters: &[&'a dyn Parameter],
) -> impl Future<Output = Result<u64, PgError>> + Send + use<'a, C> {
    let parameters: Vec<_> = parameters.iter().map(|parameter| parameter.typed()).collect();
    async move { Ok(client.execute_typed(sql, &parameters).await?) }
}

pub(crate) async fn notify(client: &(impl GenericClient + Sync), hint: Hint) -> Result<(), PgError> {
    let payload = listen::payload(hint);
    query(client, "SELECT pg_notify($1, $2)", &[&listen::CHANNEL, &payload]).await.map(|_| ())
}

/// A transaction in one round trip: `begin`, what `work` sends, and COMMIT leave together. So `work` must send all of its statements when it is first
/// polled, as a `try_join!` of them does. A statement that fails makes the COMMIT a rollback.
pub(crate) async fn in_one_flight<T>(
    client: &Client,
    begin: &str,
    work: impl Future<Output = Result<T, PgError>>,
) -> Result<T, PgError> {
    let mut begun = pin!(client.batch_execute(begin));
    let sent = poll_fn(|context| Poll::Ready(begun.as_mut().poll(context))).await;
    let done = committed(client, work).await;
    match sent {
        Poll::Ready(result) => result?,
        Poll::Pending => begun.await?,
    }
    done
}

/// The rest of [`in_one_flight`] where the transaction has begun.
pub(crate) async fn committed<T>(
    client: &Client,
    work: impl Future<Output = Result<T, PgError>>,
) -> Result<T, PgError> {
    let mut work = pin!(work);
    let first = poll_fn(|context| Poll::Ready(work.as_mut().poll(context))).await;
    if let Poll::Ready(Err(error)) = first {
        // Not everything was sent: a COMMIT would keep the half of it.
        client.batch_execute("ROLLBACK").await?;
        return Err(error);
    }
    let mut ended = pin!(client.batch_execute("COMMIT"));
    let sent = poll_fn(|context| Poll::Ready(ended.as_mut().poll(context))).await;
    let done = match first {
        Poll::Ready(done) => done,
        Poll::Pending => work.await,
    };
    let ended = match sent {
        Poll::Ready(result) => result,
        Poll::Pending => ended.await,
    };
    let done = done?;
    ended?;
    Ok(done)
}
